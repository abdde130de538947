"""How a job trains: its settings fitted to the plan, its devices, its teacher, its batches."""

import dataclasses
import functools
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jax.sharding import Mesh
from numpy.typing import NDArray

from jaxchop.data.loader import Loader
from jaxchop.data.packed import Packed, tokenizer_digest
from jaxchop.data.windows import first_windows
from jaxchop.errors import UsageError
from jaxchop.hub.load import load_model, open_checkpoint
from jaxchop.model.flops import forward_flops
from jaxchop.model.llama import Llama
from jaxchop.parallel.mesh import make_mesh
from jaxchop.parallel.sharding import placement
from jaxchop.recover.loop import recover
from jaxchop.recover.outcome import Recovered
from jaxchop.recover.teacher import needed
from jaxchop.recover.trainable import replacements, way_of
from jaxchop.subject import Subject
from jaxchop.training import RecoverConfig

if TYPE_CHECKING:
  from jaxchop.job import Job

log = logging.getLogger("jaxchop")
# Up to so many readings a text teaches nearly as much as new text would (arXiv 2305.16264, section 5).
_WORN = 4


def fitted(job: "Job") -> RecoverConfig:
  """Returns the settings of recovery, in which the layers that the plan made are named."""
  settings = job.recipe.recover
  if settings.trainable == "replacement":
    settings = dataclasses.replace(settings, trainable="partial", partial=replacements(job.plan))
  return settings


def check(job: "Job") -> None:
  """Raises UsageError on settings of recovery that do not fit the plan: not when an hour of measuring is over."""
  distill = job.recipe.recover.distill
  if job.recipe.recover.steps:
    if needed(distill) and distill.teacher is None and not job.plan.drop:
      raise UsageError("recover.distill.teacher: this recipe prunes nothing; name the model to learn from")
    if needed(distill) and distill.teacher is not None:
      other = tokenizer_digest(Subject(distill.teacher).tokenizer)
      if other != tokenizer_digest(job.subject.tokenizer):
        raise UsageError(
          f"recover.distill.teacher: {distill.teacher} has another tokenizer than {job.subject.name}, so its "
          "distributions are of other tokens; name a teacher with the same one"
        )
    way_of(fitted(job), job.subject.checkpoint.architecture, len(job.plan.keep))


def flops_per_token(job: "Job") -> float:
  """Returns the operations a token of a training step by formula, those of a teacher's forward pass among them."""
  settings, own = fitted(job), job.subject.checkpoint
  total = way_of(settings, own.architecture, len(job.plan.keep)).flops(settings.seq_len).total
  if needed(settings.distill):
    teacher = own if settings.distill.teacher is None else open_checkpoint(settings.distill.teacher)
    total += forward_flops(teacher.architecture, teacher.layers, settings.seq_len).total
  return total


def mesh_of(job: "Job") -> Mesh | None:
  """Returns the devices that a job trains on."""
  settings, architecture = job.recipe.recover, job.subject.checkpoint.architecture
  return make_mesh(settings.mesh, architecture, settings.batch_size // settings.accumulate, settings.seq_len)


def teacher_of(job: "Job") -> Llama | None:
  """Returns the model that a recovery learns from beside the text, if it does."""
  settings = job.recipe.recover.distill
  if not needed(settings):
    return None
  mesh = mesh_of(job)
  if settings.teacher is None and mesh is None:
    return job.whole
  named = job.subject.checkpoint if settings.teacher is None else open_checkpoint(settings.teacher)
  return load_model(named, sharding=None if mesh is None else functools.partial(placement, mesh=mesh))


def train(
  job: "Job",
  start: Llama,
  steps: int,
  folder: Path,
  corpora: Mapping[str, Packed],
  cut_by: tuple[Any, ...],
  teacher: Llama | None,
  keep: tuple[int, ...] | None,
) -> Recovered:
  """Returns what `steps` make of a model that came of `cut_by`; its layers were the teacher's `keep`, if not None."""
  settings, data = dataclasses.replace(fitted(job), steps=steps), job.recipe.data
  schedule = {step: [shares.get(name, 0.0) for name in corpora] for step, shares in data.weights.items()}
  batches = Loader(
    [*corpora.values()],
    batch_size=settings.batch_size,
    seed=settings.seed,
    weights=schedule,
    workers=data.workers,
  )
  for name, times in zip(corpora, batches.epochs(steps), strict=True):
    if times > _WORN:
      log.warning(
        "recover.steps: %d steps read the training text%s %.0f times; beyond %d it is learned by heart and held-out "
        "text gets worse; give more text or fewer steps",
        *(steps, name and f" {name}", times, _WORN),
      )
  digests: Any = {name: packed.digest for name, packed in corpora.items()}
  identity = [digests, data.weights] if data.corpora else digests[""]
  meta = {"source": job.subject.identity, "cut": json.loads(json.dumps(cut_by, default=str)), "data": identity}
  if settings.distill.teacher is not None:
    meta["teacher"] = job.hosts.first("teacher", lambda: Subject(settings.distill.teacher).identity)
  return recover(
    start,
    batches,
    settings,
    folder,
    meta=meta,
    held_out=_held_out(job),
    hosts=job.hosts,
    teacher=teacher,
    keep=keep,
  )


def _held_out(job: "Job") -> NDArray[np.int32] | None:
  """Returns the windows on which a recovery is measured in between, if it is."""
  settings = job.recipe.recover
  if not settings.evaluate_every:
    return None
  return first_windows(
    job.texts.held_out,
    job.subject.tokenizer,
    count=settings.evaluate_windows,
    length=settings.seq_len + 1,
    eos=job.subject.eos[0],
    use="held_out",
    setting="recover.evaluate_windows",
  )
