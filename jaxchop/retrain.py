"""How a job trains: its settings fitted to the plan, its devices, its teacher, its batches."""

import dataclasses
import functools
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jax.sharding import Mesh
from numpy.typing import NDArray

from jaxchop.data.loader import Loader
from jaxchop.data.packed import tokenizer_digest
from jaxchop.data.windows import first_windows
from jaxchop.errors import UsageError
from jaxchop.evaluate.answers import Halted
from jaxchop.evaluate.suites import Asked, Suite, suites
from jaxchop.hub.checkpoint import Checkpoint
from jaxchop.hub.load import load_model, open_checkpoint
from jaxchop.model.flops import forward_flops
from jaxchop.model.llama import Llama
from jaxchop.parallel.mesh import make_mesh
from jaxchop.parallel.sharding import placement
from jaxchop.recover.fading import Fading
from jaxchop.recover.loop import recover
from jaxchop.recover.outcome import Recovered
from jaxchop.recover.run import Along
from jaxchop.recover.teacher import needed, require_same_tokens, stands_beside
from jaxchop.recover.trainable import replacements, way_of
from jaxchop.subject import Subject
from jaxchop.teaching import taught
from jaxchop.training import DistillConfig, RecoverConfig

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


def fading(job: "Job") -> RecoverConfig:
  """Returns the settings by which the layers to go fade out before they are cut."""
  settings = job.recipe.recover
  return dataclasses.replace(
    settings,
    steps=job.recipe.prune.fade,
    trainable="all",
    distill=DistillConfig(),
    fork=None,
    # Held-out text would be measured with the layers that go.
    evaluate_every=0,
    evaluate_suite=(),
    keep_best=0,
  )


def tokens_before(job: "Job") -> int:
  """Returns the tokens that a pruned model has been trained on before its recovery."""
  prune, recover = job.recipe.prune, job.recipe.recover
  return (prune.fade + (prune.rounds - 1) * prune.recover_between) * recover.batch_size * recover.seq_len


def check(job: "Job") -> None:
  """Raises UsageError on settings of recovery that do not fit the plan: not when an hour of measuring is over."""
  distill = job.recipe.recover.distill
  if job.recipe.recover.steps:
    if needed(distill) and distill.teacher is None and not job.plan.drop:
      raise UsageError("recover.distill.teacher: this recipe prunes nothing; name the model to learn from")
    if needed(distill) and distill.teacher is not None:
      other = Subject(distill.teacher)
      require_same_tokens(other.checkpoint.architecture, job.subject.checkpoint.architecture)
      if tokenizer_digest(other.tokenizer) != tokenizer_digest(job.subject.tokenizer):
        raise UsageError(
          f"recover.distill.teacher: {distill.teacher} has another tokenizer than {job.subject.name}, so its "
          "distributions are of other tokens; name a teacher with the same one"
        )
    if distill.cache_top and job.recipe.recover.fork:
      raise UsageError(
        "recover.fork: it reads on behind the records that a teacher is asked about (recover.distill.cache_top); fork "
        "a run whose teacher stands beside it"
      )
    if distill.cache_top > (tokens := job.subject.checkpoint.architecture.vocab_size):
      raise UsageError(
        f"recover.distill.cache_top is {distill.cache_top}, but the teacher has {tokens} tokens; 64 keep nearly all"
      )
    way_of(fitted(job), job.subject.checkpoint.architecture, len(job.plan.keep))


def flops_per_token(job: "Job") -> float:
  """Returns the operations a token of a training step by formula, those of a teacher beside it among them."""
  settings = fitted(job)
  total = way_of(settings, job.subject.checkpoint.architecture, len(job.plan.keep)).flops(settings.seq_len).total
  return total + (_teacher_flops(job) if stands_beside(settings.distill) else 0.0)


def flops_before(job: "Job", steps: int) -> float:
  """Returns the operations by formula of a teacher that is asked before the first of so many steps."""
  settings = job.recipe.recover
  if not needed(settings.distill) or stands_beside(settings.distill):
    return 0.0
  return sum(map(len, loader_of(job).records(steps))) * settings.seq_len * _teacher_flops(job)


def _teacher_flops(job: "Job") -> float:
  """Returns the operations a token of the teacher's forward pass."""
  named, length = job.recipe.recover.distill.teacher, job.recipe.recover.seq_len
  teacher = job.subject.checkpoint if named is None else open_checkpoint(named)
  return forward_flops(teacher.architecture, teacher.layers, length).total


def mesh_of(job: "Job") -> Mesh | None:
  """Returns the devices that a job trains on."""
  settings, architecture = job.recipe.recover, job.subject.checkpoint.architecture
  return make_mesh(settings.mesh, architecture, settings.batch_size // settings.accumulate, settings.seq_len)


def teacher_of(job: "Job") -> Llama | None:
  """Returns the model that runs beside the one that trains, if one does."""
  return load_teacher(job) if stands_beside(job.recipe.recover.distill) else None


def load_teacher(job: "Job") -> Llama:
  """Returns the model that a recovery learns from, spread over its devices."""
  named = job.recipe.recover.distill.teacher
  if named is None and mesh_of(job) is None:
    return job.whole
  return load_spread(job, job.subject.checkpoint if named is None else open_checkpoint(named))


def load_spread(job: "Job", checkpoint: Checkpoint, keep: Sequence[int] | None = None) -> Llama:
  """Returns the layers `keep` of a model, or all, spread over a job's devices: a process reads its own parts."""
  mesh = mesh_of(job)
  return load_model(checkpoint, keep=keep, sharding=None if mesh is None else functools.partial(placement, mesh=mesh))


def loader_of(job: "Job") -> Loader:
  """Returns the batches that a job trains on."""
  settings, data, corpora = job.recipe.recover, job.recipe.data, job.corpora
  return Loader(
    [*corpora.values()],
    batch_size=settings.batch_size,
    seed=settings.seed,
    weights={step: [shares.get(name, 0.0) for name in corpora] for step, shares in data.weights.items()},
    workers=data.workers,
  )


def batches_of(job: "Job", settings: RecoverConfig) -> Loader:
  """Returns the batches of a training; of a teacher that stands not beside them, with what it expects of each."""
  batches = loader_of(job)
  if needed(settings.distill) and not stands_beside(settings.distill):
    batches.likely = taught(job, batches, settings.steps, lambda: load_teacher(job), mesh_of(job))
  return batches


def train(
  job: "Job",
  start: Llama,
  settings: RecoverConfig,
  folder: Path,
  batches: Loader,
  cut_by: tuple[Any, ...],
  teacher: Llama | None,
  keep: tuple[int, ...] | None,
  fading: Fading | None = None,
) -> Recovered:
  """Returns what training makes of a model that came of `cut_by`; its layers were the teacher's `keep`, if not None."""
  data, corpora = job.recipe.data, job.corpora
  for name, times in zip(corpora, batches.epochs(settings.steps), strict=True):
    if times > _WORN:
      log.warning(
        "recover.steps: %d steps read the training text%s %.0f times; beyond %d it is learned by heart and held-out "
        "text gets worse; give more text or fewer steps",
        *(settings.steps, name and f" {name}", times, _WORN),
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
    held_out=_held_out(job) if settings.evaluate_every else None,
    hosts=job.hosts,
    teacher=teacher,
    keep=keep,
    fading=fading,
    along=_along(job) if settings.evaluate_suite else None,
  )


def suites_along(job: "Job") -> list[Suite]:
  """Returns what is measured of the model in the middle of its recovery."""
  settings = job.recipe.recover
  if settings.evaluate_suite and not settings.evaluate_every:
    raise UsageError("recover.evaluate_suite: nothing says when; set recover.evaluate_every")
  if settings.evaluate_suite and job.hosts.count > 1:
    raise UsageError(
      "recover.evaluate_suite: several processes measure the held-out loss alone; leave it out, and ask `jaxchop "
      "evaluate RUN@STEP` about a checkpoint"
    )
  return suites(dataclasses.replace(job.recipe.evaluate, suite=settings.evaluate_suite), job.texts)


def _along(job: "Job") -> Along:
  """Returns what measures the model in the middle of its recovery."""
  wanted = suites_along(job)

  def figures(model: Llama, stopped: Callable[[], bool]) -> dict[str, dict[str, Any]] | None:
    asked = Asked(lambda: model, job.subject.tokenizer, eos=job.subject.eos, title="Measuring", stopped=stopped)
    try:
      found = [suite.run(asked) for suite in wanted]
    except Halted:
      return None
    # The samples behind a figure are many, and stand in no curve. The first figure of a suite is what it is about.
    return {
      name: {key: one[key] for key in ("value", "error", "unit")} | {"protocol": each["protocol"], "main": not number}
      for each in found
      for number, (name, one) in enumerate(each["figures"].items())
    }

  return figures


def _held_out(job: "Job") -> NDArray[np.int32]:
  """Returns the windows on which a recovery is measured in between."""
  settings = job.recipe.recover
  return first_windows(
    job.texts.held_out,
    job.subject.tokenizer,
    count=settings.evaluate_windows,
    length=settings.seq_len + 1,
    eos=job.subject.eos[0],
    use="held_out",
    setting="recover.evaluate_windows",
  )
