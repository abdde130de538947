"""A model as people name it, opened: a folder, a GGUF file, a hub id, `builtin`, or a jaxchop run, also RUN@STEP."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jax.sharding import Mesh
from transformers import PreTrainedTokenizerFast

from jaxchop.errors import JaxchopError
from jaxchop.hub.check import load_reference as hub_reference
from jaxchop.hub.checkpoint import Checkpoint
from jaxchop.hub.load import load_model, open_checkpoint
from jaxchop.hub.tokenizer import eos_ids, load_tokenizer
from jaxchop.model.llama import Llama
from jaxchop.parallel.sharding import placement, spread
from jaxchop.prune import plan as plans
from jaxchop.prune.merge import apply_merges
from jaxchop.prune.plan import Plan, read_plan
from jaxchop.recover.frozen import Parts, recovered_parts
from jaxchop.run_folder import RunFolder


class Subject:
  """One named model: what it came from, which of its layers are kept, its tokenizer, its weights when asked for."""

  def __init__(self, name: str):
    self.name = name
    self.run, self.step = _run_of(name)
    self.plan: Plan | None = read_plan(self.run.plan) if self.run else None
    self.checkpoint: Checkpoint = open_checkpoint(_source_of(self.plan) if self.plan else name)

  @functools.cached_property
  def identity(self) -> dict[str, Any]:
    """What a plan or a score says of the model it is about; the digest reads every weight once."""
    checkpoint = self.checkpoint
    return {"name": checkpoint.name, "revision": checkpoint.revision, "digest": checkpoint.digest()}

  @property
  def reference(self) -> str:
    """The run by a name that does not depend on the folder one is in."""
    assert self.run is not None
    return str(self.run.path.resolve()) + ("" if self.step is None else f"@{self.step}")

  @property
  def keep(self) -> tuple[int, ...]:
    return self.plan.keep if self.plan else tuple(range(self.checkpoint.layers))

  @functools.cached_property
  def tokenizer(self) -> PreTrainedTokenizerFast:
    return load_tokenizer(self.checkpoint)

  @functools.cached_property
  def eos(self) -> tuple[int, ...]:
    return eos_ids(self.checkpoint)

  def load(self, mesh: Mesh | None = None) -> Llama:
    """Returns the weights in float32: a run's newest verified checkpoint, or its pruned source before the first one.

    Of RUN@STEP, the checkpoint of that step; raises JaxchopError when it is not there any more. With a mesh they are
    spread over it; what was trained or merged is whole on one device before.
    """
    if self.run is not None and (self.step is not None or self.run.checkpoints.exists()):
      model = self.parts().model
    elif self.plan is not None and (self.plan.merges or self.plan.repair):
      model = cut_without_text(self.checkpoint, self.plan, self.name)
    else:
      place = None if mesh is None else functools.partial(placement, mesh=mesh)
      return load_model(self.checkpoint, keep=self.keep, sharding=place)
    return model if mesh is None else spread(model, mesh)

  def parts(self) -> Parts:
    """Returns what a run trained and what it left as it was, of the checkpoint that `load` takes."""
    assert self.run is not None
    return recovered_parts(self.run.checkpoints, self.checkpoint.architecture, len(self.keep), self.step)


def _run_of(name: str) -> tuple[RunFolder | None, int | None]:
  """Returns the run that a name means, if any, and the step that it asks for."""
  stem, _, step = name.rpartition("@")
  asked = int(step) if step.isdecimal() and (Path(stem) / "plan.json").is_file() else None
  path = Path(name if asked is None else stem)
  return (RunFolder(path) if (path / "plan.json").is_file() else None), asked


def _source_of(plan: Plan) -> str:
  name, revision = plan.source["name"], plan.source.get("revision")
  hub_id = revision and "/" in name and not Path(name).exists()
  return f"{name}@{revision}" if hub_id and "@" not in name else name


def cut_without_text(checkpoint: Checkpoint, plan: Plan | None, name: str) -> Llama:
  """Returns what a plan makes of a model, or all of it; raises JaxchopError where that was fitted on text."""
  if plan is None:
    return load_model(checkpoint)
  if plan.repair is not None:
    raise JaxchopError(f"{name}: {plan.repair.words}, whose weights are in no checkpoint yet; recover the run first")
  return apply_merges(load_model(checkpoint), plan.merges) if plan.merges else load_model(checkpoint, keep=plan.keep)


def load_reference(name: str, revision: str | None, about: Mapping[str, Any]) -> Llama | None:
  """Returns what an export's weights must equal: a run's own, or what its plan makes of the source; see hub/check.py.

  None where the plan's weights were fitted on text and no checkpoint holds them.
  """
  subject = Subject(name)
  if subject.run:
    trained = subject.run.checkpoints.exists()
    return subject.load() if trained or not (subject.plan and subject.plan.repair) else None
  content = about.get("provenance", {}).get("plan")
  plan = plans.from_json(content, "the plan in jaxchop.json") if content else None
  if plan is None or not (plan.merges or plan.repair) or plan.layers != subject.checkpoint.layers:
    return hub_reference(name, revision, about)
  return None if plan.repair else cut_without_text(subject.checkpoint, plan, name)
