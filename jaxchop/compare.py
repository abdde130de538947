"""`jaxchop compare`: several ways back from one pruned model, on the same text, at equal tokens and at equal FLOPs.

All start from one plan and are measured on the same held-out windows. A run is made once a way, budget and seed, in
rounds of all ways, so that what stands after an interruption can be compared; what stands is not made again.
"""

import dataclasses
import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from jaxchop.config import Recipe
from jaxchop.data.sources import digest
from jaxchop.errors import UsageError
from jaxchop.evaluate.perplexity import Protocol, perplexity
from jaxchop.files import locked, write_bytes, write_json, write_text
from jaxchop.job import Job
from jaxchop.model.llama import Llama
from jaxchop.pipeline import spent_on
from jaxchop.report import ways as report
from jaxchop.run_folder import standing
from jaxchop.subject import Subject
from jaxchop.versions import machine, versions

Budget = Literal["tokens", "flops"]
log = logging.getLogger("jaxchop")
_SHARED = ("model", "data", "evaluate", "export")
_OF_THE_CUT = ("prune", "merging", "score")


def compare(
  ways: Mapping[str, Recipe],
  out: Path,
  *,
  tokens: int | None = None,
  budgets: Sequence[Budget] = ("tokens", "flops"),
  seeds: Sequence[int] = (0,),
) -> dict[str, Any]:
  """Runs all ways and returns what compare.json holds; it is written anew after each run, with a table and a plot.

  For the budget `tokens` each way trains on so many, or for the steps that its recipe names; for `flops`, for as many
  steps as cost what the first way costs with its tokens, a teacher's work counted. The others are held against that
  first way. One whose recipe keeps all layers is a control: it shows what the text does to a model that was not pruned.
  Raises UsageError where recipes do not share model, text, pruning and measuring.
  """
  with locked(out):
    comparison = _Comparison(ways, out, tokens)
    before, done = comparison.before(), []
    runs = [(seed, budget, way) for seed in seeds for budget in budgets for way in ways]
    for number, (seed, budget, way) in enumerate(runs, start=1):
      steps = comparison.steps(way, budget)
      log.info("Run %d of %d: %s, seed %d, %d steps (%s)", number, len(runs), way, seed, steps, f"equal {budget}")
      done.append({"way": way, "budget": budget, "seed": seed, **comparison.result(way, steps, seed)})
      found = {
        "plan": comparison.plan.words,
        "protocol": str(comparison.protocol),
        **before,
        "rows": report.rows(done, before),
        "runs": done,
        "left": len(runs) - number,
        "versions": versions(),
        "machine": machine(),
      }
      write_json(out / "compare.json", found)
      write_text(out / "compare.md", report.markdown(found))
      write_bytes(out / "compare.png", report.plot(found))
  return found | {"folder": str(out)}


class _Comparison:
  """Ways back from one pruned model, and where their results lie."""

  def __init__(self, ways: Mapping[str, Recipe], out: Path, tokens: int | None):
    self.ways, self.out, self.tokens = ways, out, tokens
    self.first = next(iter(ways))
    self.cut = Job(dataclasses.replace(ways[self.first], out=str(out / "pruned")))
    self.cut.texts.require("held_out")
    self.plan = self.cut.plan
    if not self.plan.drop:
      raise UsageError(f"{self.first}: it prunes nothing, and the others are held against it; name it later")
    # What does not fit is refused now, not when the first ways have run.
    self._flops_per_token: dict[str, float] = {}
    for name in ways:
      self._refuse_unlike(name)
      job = self._job(name, self.steps(name, "tokens"), 0)
      job.check_training()
      self._flops_per_token[name] = job.flops_per_token

  @property
  def protocol(self) -> Protocol:
    config = self.ways[self.first].evaluate
    return Protocol(window=config.window, stride=config.stride, bos=config.bos, max_windows=config.max_windows)

  def _refuse_unlike(self, name: str) -> None:
    recipe, first = self.ways[name], self.ways[self.first]
    if not recipe.recover.steps or recipe.prune.recover_between or recipe.recover.fork:
      raise UsageError(f"{name}: a way back is one recovery: set recover.steps, no prune.recover_between and no fork")
    for setting in (*_SHARED, *(() if self._is_control(name) else _OF_THE_CUT)):
      if getattr(recipe, setting) != getattr(first, setting):
        raise UsageError(f"{name}: its {setting} is not that of {self.first}; share it by --base")
    if recipe.recover.seq_len != first.recover.seq_len:
      raise UsageError(f"{name}: its recover.seq_len is not that of {self.first}; train all on records of one length")

  def _is_control(self, name: str) -> bool:
    prune = self.ways[name].prune
    return prune != self.ways[self.first].prune and prune.keep == f"0:{self.plan.layers}"

  def _job(self, name: str, steps: int, seed: int) -> Job:
    recipe = self.ways[name]
    recover = dataclasses.replace(recipe.recover, steps=steps, seed=seed)
    folder = self.out / "runs" / f"{name}-{steps}-steps-seed-{seed}"
    plan = None if self._is_control(name) else self.plan
    job = Job(dataclasses.replace(recipe, out=str(folder), recover=recover), plan=plan)
    # All read the same model and text: opened, split and packed once.
    job.subject, job.texts = self.cut.subject, self.cut.texts
    return job

  def steps(self, name: str, budget: Budget) -> int:
    """Returns for how many steps a way trains."""
    recover = self.ways[name].recover
    a_step = recover.batch_size * recover.seq_len
    if budget == "tokens":
      return recover.steps if self.tokens is None else max(round(self.tokens / a_step), 1)
    first = self.ways[self.first].recover
    spent = self.steps(self.first, "tokens") * first.batch_size * first.seq_len * self._flops_per_token[self.first]
    return max(round(spent / (a_step * self._flops_per_token[name])), 1)

  def before(self) -> dict[str, Any]:
    """Returns what the whole and the pruned model are worth before any training."""
    models = {"original": lambda: self.cut.whole, "pruned": lambda: self.cut.small}
    found = {}
    for name, model in models.items():
      key = self._measuring, self.cut.cut_by if name == "pruned" else None
      path = self.cut.folder.measured / f"{name}.json"
      found[name] = standing(path, key, lambda model=model, name=name: self._worth(model(), f"Measuring {name}"))
    for name in ("small", "whole"):
      self.cut.__dict__.pop(name, None)
    return found

  def result(self, name: str, steps: int, seed: int) -> dict[str, Any]:
    """Returns what one run came to; its curve stays, its checkpoints go when it is measured."""
    job = self._job(name, steps, seed)
    job.corpora = self.cut.corpora
    recover = job.recipe.recover
    key = self._measuring, job.cut_by, recover, job.trained_on

    def make() -> dict[str, Any]:
      with job.locked():
        spent = spent_on(job.recovered())
        worth = self._worth(Subject(str(job.folder.path)).load(), f"Measuring {name}")
      tokens = steps * recover.batch_size * recover.seq_len
      plan = spent.pop("plan")
      return {
        **worth,
        "control": self._is_control(name),
        "trained": plan["trainable"],
        "flops": tokens * self._flops_per_token[name],
        "spent": {key: spent[key] for key in ("steps", "tokens", "seconds", "compile_seconds", "skipped", "spikes")},
      }

    found = standing(job.folder.path / "result.json", key, make)
    for folder in ("checkpoints", "frozen"):
      shutil.rmtree(job.folder.path / folder, ignore_errors=True)
    return found

  @property
  def _measuring(self) -> Any:
    return self.cut.subject.identity, digest(self.cut.texts.held_out), self.ways[self.first].evaluate

  def _worth(self, model: Llama, title: str) -> dict[str, Any]:
    held_out, batch_size = self.cut.texts.held_out, self.ways[self.first].evaluate.batch_size
    tokenizer = self.cut.subject.tokenizer
    found = perplexity(model, tokenizer, held_out, self.protocol, batch_size=batch_size, title=title)
    numbers = ("perplexity", "nll", "nll_error", "bits_per_byte", "window_nll", "window_tokens")
    return {name: getattr(found, name) for name in numbers}
