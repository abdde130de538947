"""lm-evaluation-harness's own command line, which knows our models and tasks too.

`python -m jaxchop.lm_eval --model jaxchop --model_args pretrained=FOLDER,batch_size=16 --tasks zeroshot7`, and every
other flag that lm-eval has.
"""

import contextlib
import dataclasses
import logging
import sys
from collections.abc import Generator
from typing import Any

from jaxchop.errors import JaxchopError, UsageError

try:
  from jaxchop.evaluate.harness import HarnessConfig, JaxchopLM
  from jaxchop.evaluate.harness_tasks import Tasks
except JaxchopError as missing:
  # This module is a command: it ends as one.
  raise SystemExit(f"error: {missing}") from missing
from jaxchop.parallel.rows import own_mesh
from jaxchop.subject import Subject

import lm_eval.models  # isort: skip  # first: it fills the registry only where it is empty
import lm_eval.tasks  # isort: skip
from lm_eval.__main__ import cli_evaluate  # isort: skip
from lm_eval.api.registry import model_registry  # isort: skip
from lm_eval.utils import simple_parse_args_string  # isort: skip


class NamedLM(JaxchopLM):
  """A model by any name that jaxchop's commands take: what `--model jaxchop` means."""

  @classmethod
  def create_from_arg_obj(cls, arg_dict: dict[str, Any], additional_config: dict[str, Any] | None = None) -> Any:
    """Returns the model that `pretrained` names; the other arguments are the fields of HarnessConfig.

    `arg_dict` are those of --model_args. Of lm-eval's flags its batch size counts where they name none; the devices
    are those that JAX sees. Raises UsageError on an unknown argument.
    """
    given: dict[str, Any] = {"batch_size": (additional_config or {}).get("batch_size") or "auto"} | arg_dict
    if not (name := str(given.pop("pretrained", ""))):
      raise UsageError("--model_args: pretrained is missing; name a folder, a run, a .gguf file or a hub id")
    size = str(given.pop("batch_size"))
    if not (auto := size.startswith("auto")) and not size.isdecimal():
      raise UsageError(f"batch_size is {size!r}; give a number")
    known = [field.name for field in dataclasses.fields(HarnessConfig)]
    if unknown := sorted(given.keys() - set(known)):
      raise UsageError(f"{unknown[0]} means nothing to jaxchop; --model_args are pretrained, {', '.join(known)}")
    config = HarnessConfig(**given) if auto else HarnessConfig(**given, batch_size=int(size))
    subject = Subject(name)
    model = subject.load(own_mesh(subject.checkpoint.architecture))
    return JaxchopLM(model, subject.tokenizer, config, eos=subject.eos)

  @classmethod
  def create_from_arg_string(cls, arg_string: str, additional_config: dict[str, Any] | None = None) -> Any:
    return cls.create_from_arg_obj(simple_parse_args_string(arg_string), additional_config)


@contextlib.contextmanager
def known_to_lm_eval() -> Generator[None]:
  """Lets lm-eval find our models and tasks by name while the block runs."""
  model_registry.register("jaxchop", target=NamedLM)
  # It has a place for one folder of tasks, which is the user's (--include_path).
  theirs = lm_eval.tasks.TaskManager
  lm_eval.tasks.TaskManager = Tasks
  try:
    yield
  finally:
    lm_eval.tasks.TaskManager = theirs


def main() -> int:
  """Runs lm-eval on sys.argv; returns the exit code, having said in one line what we know is wrong."""
  logging.getLogger("jaxchop").setLevel(logging.INFO)
  try:
    with known_to_lm_eval():
      cli_evaluate()
  except JaxchopError as error:
    print(f"error: {error}", file=sys.stderr)
    return error.exit_code
  return 0


if __name__ == "__main__":
  sys.exit(main())
