"""Recoveries of one pruned model that differ in how or how long it is trained, measured on the same held-out windows.

All start from one plan. A result stands once it is there; checkpoints go when the model is measured.
"""

import dataclasses
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxchop import packing, retrain
from jaxchop.config import DataConfig, OwnConfig, Recipe
from jaxchop.data.sources import digest
from jaxchop.data.texts import OWN
from jaxchop.errors import UsageError
from jaxchop.evaluate.perplexity import Protocol, perplexity
from jaxchop.job import Job
from jaxchop.model.llama import Llama
from jaxchop.pipeline import spent_on
from jaxchop.prune.plan import Plan
from jaxchop.run_folder import standing
from jaxchop.subject import Subject

_SHARED = ("model", "evaluate", "export")
_OF_THE_CUT = ("prune", "merging", "score")


class Trials:
  """Ways to recover one pruned model, by name, and the folder of their results."""

  def __init__(self, ways: Mapping[str, Recipe], out: Path, plan: Plan | None = None):
    """Takes the plan that the first way's recipe makes, unless one is given.

    Raises UsageError where recipes do not share model, text, pruning and measuring, or one does not fit the plan: not
    when the first of them have run.
    """
    self.ways, self.out, self.first = ways, out, next(iter(ways))
    self.cut = Job(dataclasses.replace(ways[self.first], out=str(out / "pruned")), plan=plan)
    self.cut.texts.require("held_out")
    self._readers: dict[str, Job] = {}
    self.plan = self.cut.plan
    if not self.plan.drop:
      raise UsageError(f"{self.first}: it prunes nothing, so nothing is to be recovered; let it prune")
    # Operations a token of a way's training step, a teacher's work among them.
    self.flops_per_token: dict[str, float] = {}
    for name, recipe in ways.items():
      self._refuse_unlike(name)
      job = self._job(name, recipe, "checked")
      retrain.check(job)
      self.flops_per_token[name] = retrain.flops_per_token(job)
      shutil.rmtree(job.folder.path, ignore_errors=True)

  @property
  def protocol(self) -> Protocol:
    config = self.ways[self.first].evaluate
    return Protocol(window=config.window, stride=config.stride, bos=config.bos, max_windows=config.max_windows)

  def is_control(self, name: str) -> bool:
    """Returns whether a way trains the model that was not pruned."""
    prune = self.ways[name].prune
    return prune != self.ways[self.first].prune and prune.keep == f"0:{self.plan.layers}"

  def before(self) -> dict[str, Any]:
    """Returns what the whole and the pruned model are worth before any training: {"original": …, "pruned": …}."""
    models = {"original": lambda: self.cut.whole, "pruned": lambda: self.cut.small}
    found = {}
    for name, model in models.items():
      key = self._measuring, self.cut.cut_by if name == "pruned" else None
      path = self.cut.folder.measured / f"{name}.json"
      found[name] = standing(path, key, lambda model=model, name=name: self._worth(model(), f"Measuring {name}"))
    for name in ("small", "whole"):
      self.cut.__dict__.pop(name, None)
    return found

  def result(self, name: str, steps: int, seed: int, warmup_steps: int | None = None) -> dict[str, Any]:
    """Returns what the model is worth after so many steps by a way, and what they took; its curve stays."""
    recover = dataclasses.replace(self.ways[name].recover, steps=steps, seed=seed)
    if warmup_steps is not None:
      recover = dataclasses.replace(
        recover, optimizer=dataclasses.replace(recover.optimizer, warmup_steps=warmup_steps)
      )
    job = self._job(name, dataclasses.replace(self.ways[name], recover=recover), f"{name}-{steps}-steps-seed-{seed}")
    job.corpora, job.taught_at = self._reader(name).corpora, self._reader(name).taught_at
    self._reader(name).__dict__.pop("whole", None)
    key = self._measuring, job.cut_by, recover, job.trained_on

    def make() -> dict[str, Any]:
      with job.locked():
        spent = spent_on(job.recovered())
        worth = self._worth(Subject(str(job.folder.path)).load(), f"Measuring {name}")
      return {
        **worth,
        "control": self.is_control(name),
        "trained": spent["plan"]["trainable"],
        "flops": self.flops(name, steps),
        "spent": {key: spent[key] for key in ("steps", "tokens", "seconds", "compile_seconds", "skipped", "spikes")},
      }

    found = standing(job.folder.path / "result.json", key, make)
    for folder in ("checkpoints", "frozen"):
      shutil.rmtree(job.folder.path / folder, ignore_errors=True)
    return found

  def _refuse_unlike(self, name: str) -> None:
    recipe, first = self.ways[name], self.ways[self.first]
    before = recipe.prune.recover_between or recipe.prune.fade
    if not recipe.recover.steps or before or recipe.recover.fork:
      raise UsageError(
        f"{name}: a way back is one recovery: set recover.steps, no prune.recover_between, no prune.fade and no fork"
      )
    if _begun(recipe) != _begun(first):
      raise UsageError(f"{name}: its data is not that of {self.first}; share it by --base")
    for setting in (*_SHARED, *(() if self.is_control(name) else _OF_THE_CUT)):
      if getattr(recipe, setting) != getattr(first, setting):
        raise UsageError(f"{name}: its {setting} is not that of {self.first}; share it by --base")
    if recipe.recover.seq_len != first.recover.seq_len:
      raise UsageError(f"{name}: its recover.seq_len is not that of {self.first}; train all on records of one length")

  def _job(self, name: str, recipe: Recipe, folder: str) -> Job:
    plan = None if self.is_control(name) else self.plan
    job = Job(dataclasses.replace(recipe, out=str(self.out / "runs" / folder)), plan=plan)
    # All read the same model and text: opened, split and packed once.
    job.subject, job.texts = self.cut.subject, self._reader(name).texts
    return job

  def flops(self, name: str, steps: int) -> float:
    """Returns the operations by formula of so many steps by a way, and of what the unpruned model did for them."""
    job = self._job(name, self.ways[name], "counted")
    job.corpora, recover = self._reader(name).corpora, self.ways[name].recover
    before = packing.flops(self._reader(name)) + retrain.flops_before(job, steps)
    return steps * recover.batch_size * recover.seq_len * self.flops_per_token[name] + before

  def _reader(self, name: str) -> Job:
    """Returns the job whose text all runs of a way read; the words of the unpruned model are a text of their own."""
    recipe = self.ways[name]
    if recipe.data == self.ways[self.first].data:
      return self.cut
    if name not in self._readers:
      self._readers[name] = Job(dataclasses.replace(recipe, out=str(self.out / "data" / name)), plan=self.plan)
      self._readers[name].subject = self.cut.subject
    return self._readers[name]

  @property
  def _measuring(self) -> Any:
    return self.cut.subject.identity, digest(self.cut.texts.held_out), self.ways[self.first].evaluate

  def _worth(self, model: Llama, title: str) -> dict[str, Any]:
    held_out, batch_size = self.cut.texts.held_out, self.ways[self.first].evaluate.batch_size
    tokenizer = self.cut.subject.tokenizer
    found = perplexity(model, tokenizer, held_out, self.protocol, batch_size=batch_size, title=title)
    numbers = ("perplexity", "nll", "nll_error", "bits_per_byte", "window_nll", "window_tokens")
    return {name: getattr(found, name) for name in numbers}


def _begun(recipe: Recipe) -> DataConfig:
  """Returns the text of a recipe, whoever writes how it goes on."""
  data = recipe.data
  corpora = {name: spec.removeprefix(OWN) for name, spec in data.corpora.items()}
  return dataclasses.replace(data, source=data.source.removeprefix(OWN), corpora=corpora, own=OwnConfig())
