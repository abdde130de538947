"""What each sub-command takes on its command line, read off the settings' dataclasses where these say it.

Nothing here loads JAX: --help and wrong usage answer at once.
"""

import difflib
import re
import sys
import textwrap
from argparse import RawDescriptionHelpFormatter
from collections.abc import Callable
from typing import NoReturn

from jsonargparse import ActionConfigFile, ArgumentParser, DefaultHelpFormatter, set_parsing_settings
from jsonargparse.typing import NonNegativeFloat, PositiveFloat, PositiveInt

from jaxchop.config import (
  BuildConfig,
  DataConfig,
  EvaluateConfig,
  ExportConfig,
  MergingConfig,
  PruneConfig,
  Recipe,
  ScoreConfig,
)
from jaxchop.training import RecoverConfig

_TEXT = "files (.txt .md .jsonl .parquet, .gz or .zst; globs; also gs://), tfds://name/config, hf://name, or `builtin`"
_MODEL = "a folder, a .gguf file, a hub id (org/name[@revision]), `builtin`, or a run folder, also RUN@STEP"

# What the argument parser says of a recipe without settings: all that stands in it.
_EMPTY = re.compile("Unexpected config: .*")
# What it says of a name that it does not know.
_UNKNOWN = re.compile(
  r"(?:unrecognized arguments:|accept option|invalid choice:|is not expected|Key) [`'\"]?-*([\w.]+)"
)


class _Formatter(RawDescriptionHelpFormatter, DefaultHelpFormatter):
  """Leaves the lines of a description as they are."""


class _Parser(ArgumentParser):
  """Says what is wrong in one line, with the nearest name where a name is unknown."""

  def error(self, message: str, ex: Exception | None = None) -> NoReturn:
    said = _EMPTY.sub("a recipe holds settings, as `model: builtin`; this one has none", " ".join(message.split()))
    if unknown := _UNKNOWN.search(said):
      near = difflib.get_close_matches(unknown[1], self.names(), n=1)
      said += f"; did you mean {near[0]}?" if near else ""
    sys.stderr.write(f"{self.prog.replace(' [options]', '')}: error: {said}\n")
    raise SystemExit(2)

  def names(self) -> list[str]:
    """Returns every option and sub-command that this parser or one below it knows."""
    found = []
    for action in self._actions:
      found += [name.lstrip("-") for name in action.option_strings]
      for name, below in (action.choices or {}).items() if isinstance(action.choices, dict) else ():
        found += [name, *below.names()]
    return found


def _run(parser: _Parser) -> None:
  parser.add_argument("--config", action=ActionConfigFile, help="recipe (YAML); several are laid over one another")
  parser.add_class_arguments(Recipe, sub_configs=False)


def _inspect(parser: _Parser) -> None:
  parser.add_argument("model", help=_MODEL)


def _score(parser: _Parser) -> None:
  from jaxchop.prune.criteria import DEFINITIONS

  parser.epilog = "Criteria, higher meaning more important unless said otherwise:\n" + "\n".join(
    textwrap.fill(f"{name}: {definition.text}", 110, initial_indent="  ", subsequent_indent="      ")
    for name, definition in DEFINITIONS.items()
  )
  parser.add_argument("model", help=_MODEL)
  parser.add_argument("-o", "--out", required=True, help="file to write, as scores.json")
  parser.add_argument("--count", type=int, help="layers to drop in what is shown; unset, a fifth")
  parser.add_argument("--compare", action="store_true", help="show the layers each criterion drops side by side")
  parser.add_class_arguments(ScoreConfig)
  parser.add_class_arguments(DataConfig, "data")


def _prune(parser: _Parser) -> None:
  parser.add_argument("model", help="a folder, a .gguf file, a hub id (org/name[@revision]) or `builtin`")
  parser.add_argument("-o", "--out", help="Hugging Face folder to write; with --plan-only the plan file")
  parser.add_argument("--plan", help="apply this plan.json")
  parser.add_argument("--scores", help="choose by the scores in this scores.json instead of scoring now")
  parser.add_argument("--plan-only", action="store_true", help="write the plan, not the model")
  parser.add_argument("--overwrite", action="store_true", help="replace a folder that jaxchop wrote")
  parser.add_class_arguments(PruneConfig)
  parser.add_class_arguments(MergingConfig, "merging")
  parser.add_class_arguments(ExportConfig, "export")
  parser.add_class_arguments(ScoreConfig, "score")
  parser.add_class_arguments(DataConfig, "data")


def _recover(parser: _Parser) -> None:
  parser.add_argument("model", help="what to train on: a folder, a .gguf file, a hub id or `builtin`")
  parser.add_argument("-o", "--out", required=True, help="run folder; the same one goes on where it stopped")
  parser.add_class_arguments(RecoverConfig)
  parser.add_class_arguments(DataConfig, "data")
  parser.add_class_arguments(EvaluateConfig, "evaluate")


def _evaluate(parser: _Parser) -> None:
  parser.add_argument("models", nargs="+", help=f"each {_MODEL}")
  suites = "perplexity, windows-2048, windows-128, documents, capability, or any task or group of lm-evaluation-harness"
  default = list(EvaluateConfig.suite)
  parser.add_argument("--suite", nargs="+", default=default, metavar="NAME", help=f"what is measured: {suites}")
  parser.add_class_arguments(EvaluateConfig, skip={"suite"})
  parser.add_class_arguments(DataConfig, "data")


def _export(parser: _Parser) -> None:
  parser.add_argument("run", help="run folder whose newest verified weights are written")
  parser.add_argument("-o", "--out", required=True, help="Hugging Face folder to write")
  parser.add_argument(
    "--adapter",
    metavar="BASE",
    help="write the adapters of a lora, dora or qlora run alone, as a folder for peft; BASE is the pruned model that "
    "they belong to, a folder or hub id (`jaxchop prune --plan RUN/plan.json` writes it)",
  )
  parser.add_argument("--overwrite", action="store_true", help="replace a folder that jaxchop wrote")
  parser.add_class_arguments(ExportConfig)


def _check(parser: _Parser) -> None:
  parser.add_argument("folder", help="Hugging Face folder")
  parser.add_argument("--source", help="compare logits with this model; unset, the one that jaxchop.json names")


def _report(parser: _Parser) -> None:
  parser.add_argument("run", help="run folder")


def _data_build(parser: _Parser) -> None:
  parser.add_argument("sources", nargs="+", help=f"{_TEXT}; conversations: chat:SOURCE or alpaca:SOURCE")
  parser.add_argument("-o", "--out", required=True, help="folder to write; the same one goes on where it stopped")
  parser.add_argument("--model", default="builtin", help=f"whose tokenizer: {_MODEL}")
  parser.add_argument("--overwrite", action="store_true", help="replace a finished cache")
  parser.add_class_arguments(BuildConfig)


def _data_inspect(parser: _Parser) -> None:
  parser.add_argument("folder", help="cache that `data build` wrote")


def _speed(parser: _Parser) -> None:
  from jaxchop.evaluate.speed_protocols import OWN, PROTOCOLS

  lengths = {
    "batch": ("prompts at once", OWN.batch),
    "prompt_tokens": ("tokens a prompt", OWN.prompt_tokens),
    "new_tokens": ("tokens written after it", OWN.new_tokens),
  }
  parser.add_argument("models", nargs="*", help=f"each {_MODEL}; the others are held against the first one")
  parser.add_argument(
    "--protocol",
    choices=sorted(PROTOCOLS),
    help="measure what this paper did; numbers below are then the most that it may take",
  )
  for name, (words, (number,)) in lengths.items():
    parser.add_argument(f"--{name}", type=int, nargs="+", help=f"{words}, one or several numbers; unset, {number}")
  parser.add_argument("--repeats", type=int, help=f"measurements of each, in turn; unset, {OWN.repeats}")
  parser.add_argument("--warm_up", type=int, help=f"rounds before them that do not count; unset, {OWN.warm_up}")
  parser.add_argument("--draft", help="instead: measure this model as the drafter of --target")
  parser.add_argument("--target", help="whose greedy text is written; --new_tokens is then 64, --repeats 1, if unset")
  parser.add_argument("--drafted", type=int, nargs="+", default=[2, 4, 8], help="tokens drafted at once")
  parser.add_argument("--prompts", type=int, default=16, help="held-out prompts that a drafter is measured on")
  parser.add_class_arguments(DataConfig, "data")


def _compare(parser: _Parser) -> None:
  parser.add_argument("recipes", nargs="+", help="a recipe (YAML) a way back; others are held against the first one")
  parser.add_argument("-o", "--out", required=True, help="folder of all runs; the same one goes on where it stopped")
  parser.add_argument("--base", action="append", default=[], help="recipe that lies under all others; may be repeated")
  parser.add_argument(
    "--tokens", type=PositiveInt, help="training tokens of every way; unset, recover.steps of each recipe"
  )
  parser.add_argument(
    "--equal",
    choices=["tokens", "flops", "both"],
    default="both",
    help="train every way on as many tokens, or for as many FLOPs as the first, a teacher's counted, or both",
  )
  parser.add_argument(
    "--seeds", type=PositiveInt, default=1, help="recoveries of every way, each from a seed of its own"
  )


def _forecast(parser: _Parser) -> None:
  parser.add_argument("run", help="a run folder or a recipe (YAML); its recovery is what is foretold")
  parser.add_argument("-o", "--out", help="folder of the probes; unset, forecast in the run folder")
  parser.add_argument(
    "--tokens",
    type=PositiveInt,
    nargs="+",
    default=[],
    help="tokens of each probe; unset, four shares of the recipe's steps",
  )
  parser.add_argument("--target", type=PositiveFloat, help="perplexity to reach")
  parser.add_argument(
    "--gain", type=PositiveFloat, default=0.01, help="nats that twice as many tokens must gain to be worth it"
  )
  parser.add_argument(
    "--chip_tflops", type=PositiveFloat, help="useful TFLOP/s of a chip to reckon hours of; unset, as here"
  )
  parser.add_argument("--seed", type=int, default=0, help="decides the order of the training records")


def _preflight(parser: _Parser) -> None:
  _run(parser)
  parser.add_argument("--topology", required=True, help="TPU slice, as v5e:4x4, v6e:8x8, v5p:2x2x4, tpu7x:2x2x1")
  parser.add_argument(
    "--slices", type=PositiveInt, default=1, help="slices of that kind, joined by the data centre's network"
  )
  parser.add_argument("--plan", help="take the layers of this plan.json, not what the recipe's prune says")
  parser.add_argument("--layers", type=PositiveInt, help="layers that stay, whatever the recipe says")
  parser.add_argument("--price", type=NonNegativeFloat, help="what an hour of a chip costs, in any currency")
  parser.add_argument("--search", action="store_true", help="compile other meshes and remat policies, fastest first")
  parser.add_argument("--sweep-layers", action="store_true", help="show what it costs to remove more or fewer layers")
  parser.add_argument("--save", metavar="FILE", help="write the compiled step, which recover.program=FILE loads")
  parser.add_argument(
    "--programs",
    nargs="+",
    choices=["held_out", "evaluation", "decode"],
    default=[],
    help="compile these beside the step: the loss between steps, the perplexity's windows, a token's decoding",
  )


def _generate(parser: _Parser) -> None:
  parser.add_argument("model", help=_MODEL)
  parser.add_argument("--prompt", action="append", required=True, help="text to continue; several are run as one batch")
  parser.add_argument("--chat", action="store_true", help="treat each prompt as a user's message, by the chat template")
  parser.add_argument("--max_new_tokens", type=int, default=64, help="longest continuation")
  parser.add_argument("--temperature", type=float, default=0.0, help="0 takes the most probable token")
  parser.add_argument("--top_k", type=int, default=0, help="draw among this many tokens; 0 means all")
  parser.add_argument(
    "--top_p", type=float, default=1.0, help="draw among the fewest tokens that reach this probability"
  )
  parser.add_argument("--seed", type=int, default=0, help="decides the draw")


_COMMANDS: dict[str, tuple[str, Callable[[_Parser], None]]] = {
  "run": ("do a whole recipe: score, prune, recover, evaluate, export, check, report", _run),
  "inspect": ("show architecture, parameters, bytes and tokenizer of a model", _inspect),
  "score": ("score every layer of a model", _score),
  "prune": ("write a model without some of its layers, or only the plan for it", _prune),
  "recover": ("train a model until it is good again: all of it, parts, or adapters", _recover),
  "evaluate": ("measure models side by side: perplexity, small tasks, tasks of lm-evaluation-harness", _evaluate),
  "compare": ("train one pruned model by several ways and compare them at equal tokens and FLOPs", _compare),
  "forecast": ("foretell from short probes what more training gives, and what a target costs", _forecast),
  "preflight": ("compile a recipe's step for a TPU slice that is not here: does it fit, how fast is it", _preflight),
  "export": ("write a run's weights as a stock Hugging Face folder", _export),
  "check": ("prove that a Hugging Face folder is sound and loads elsewhere", _check),
  "report": ("write report.html of a run", _report),
  "data build": ("tokenise text once into a cache of fixed-length records", _data_build),
  "data inspect": ("show what a cache holds and check every byte of it", _data_inspect),
  "speed": ("measure prefill and decode speed of models side by side", _speed),
  "generate": ("continue prompts", _generate),
}


def parser() -> _Parser:
  """Returns the whole command line."""
  set_parsing_settings(docstring_parse_attribute_docstrings=True)
  about = "Drop layers of a Llama-family model, recover it, write it back."
  root = _Parser(prog="jaxchop", description=about, formatter_class=_Formatter)
  commands = {"": root.add_subcommands(required=True)}
  for name, (words, add_arguments) in _COMMANDS.items():
    group, _, own = name.rpartition(" ")
    if group not in commands:
      above = _Parser(description=f"Commands about {group}.", formatter_class=_Formatter)
      commands[""].add_subcommand(group, above, help=f"commands about {group}")
      commands[group] = above.add_subcommands(required=True)
    sub = _Parser(description=f"{words[0].upper()}{words[1:]}.", formatter_class=_Formatter)
    add_arguments(sub)
    sub.add_argument("--json", action="store_true", help="print one JSON object on standard output, nothing else")
    sub.add_argument("--quiet", action="store_true", help="no progress and no log lines")
    sub.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands[group].add_subcommand(own, sub, help=words)
  return root
