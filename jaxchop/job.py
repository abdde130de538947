"""A recipe at work: its model, text and plan, opened when first needed, and the training that it asks for."""

import dataclasses
import functools
import json
import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from jaxchop import stages
from jaxchop.config import Recipe
from jaxchop.data.loader import Loader
from jaxchop.data.pack import pack
from jaxchop.data.packed import MANIFEST, Packed, open_packed, read_manifest, tokenizer_digest
from jaxchop.data.sources import Document, digest
from jaxchop.data.texts import Texts, is_cache, local_cache, read_splits
from jaxchop.errors import UsageError
from jaxchop.files import write_json
from jaxchop.model.llama import Llama
from jaxchop.parallel.mesh import make_mesh
from jaxchop.prune import plan as plans
from jaxchop.prune.criteria import named
from jaxchop.prune.plan import Plan
from jaxchop.prune.surgery import keep_layers
from jaxchop.recover.loop import Recovered, recover
from jaxchop.recover.step import make_step
from jaxchop.run_folder import RunFolder, standing
from jaxchop.subject import Subject
from jaxchop.versions import machine

Layers = tuple[int, ...]
log = logging.getLogger("jaxchop")
# Up to so many readings a text teaches nearly as much as new text would (arXiv 2305.16264, section 5).
_WORN = 4
# Characters of text for which it is worth to start one more process that tokenises.
_WORTH = 50_000_000


class Job:
  """A recipe, its run folder, and what several stages share, opened when first needed."""

  def __init__(self, recipe: Recipe):
    """Raises UsageError on settings that contradict each other across rooms or fit neither model nor devices."""
    if recipe.prune.recover_between and (recipe.prune.merge or not recipe.recover.steps or recipe.prune.rounds == 1):
      raise UsageError(
        "prune.recover_between: needs prune.rounds above 1, recover.steps above 0 and no prune.merge; leave it out"
      )
    self.recipe = recipe
    self.folder = RunFolder(Path(recipe.out))
    self.subject = Subject(recipe.model)
    if recipe.recover.steps:
      # Refused now, not when an hour of scoring and measuring is over.
      make_step(recipe.recover)
      rows = recipe.recover.batch_size // recipe.recover.accumulate
      make_mesh(recipe.recover.mesh, self.subject.checkpoint.architecture, rows)
      for spec in filter(is_cache, self.texts.specs.values()):
        if (length := read_manifest(local_cache(spec), self.subject.tokenizer).seq_len) != recipe.recover.seq_len:
          raise UsageError(
            f"{spec}: holds records of {length} tokens, not of {recipe.recover.seq_len}: set recover.seq_len to "
            f"{length} or build another cache"
          )
    # What was left in each round of scoring, the whole model first.
    self._rounds: list[Layers] = []

  @functools.cached_property
  def texts(self) -> Texts:
    return read_splits(self.recipe.data)

  @functools.cached_property
  def whole(self) -> Llama:
    return self.subject.load()

  @functools.cached_property
  def plan(self) -> Plan:
    """Which layers stay: plan.json, from scores.json where a criterion chooses."""
    plan = stages.plan(self.subject, self.recipe, self._scores, self._layer_share, self._searched)
    write_json(self.folder.plan, plans.to_json(plan))
    return plan

  @functools.cached_property
  def small(self) -> Llama:
    """The pruned model before recovery; what the prune leaves as it is, it shares with the whole one."""
    plan = self.plan
    if self.recipe.prune.recover_between:
      return _places(self._after(self._rounds[-1]), self._rounds[-1], plan.keep)
    return stages.cut(self.subject, self.whole, plan, self.recipe.merging, lambda: self.texts)

  @property
  def cut_by(self) -> tuple[Any, ...]:
    """What the pruned weights depend on beside the whole ones."""
    plan = self.plan
    fitted = (plan.repair, self.recipe.merging, digest(self.texts.training)) if plan.repair else ()
    trained = (self._rounds, self.recipe.prune.recover_between, self.recipe.recover, self.trained_on)
    return plan.keep, *plan.merges, *fitted, *(trained if self.recipe.prune.recover_between else ())

  @functools.cached_property
  def trained_on(self) -> Any:
    """What the recovered weights depend on of the text: digests, by corpus where there are several, and the weights."""
    found = {
      name: read_manifest(text).digest if isinstance(text, Path) else digest(text)
      for name, text in self.texts.corpora.items()
    }
    return [found, self.recipe.data.weights] if self.recipe.data.corpora else found[""]

  @functools.cached_property
  def corpora(self) -> dict[str, Packed]:
    """The token records to train on, by corpus: text is packed once, and every byte is checked each time."""
    found = {}
    for name, text in self.texts.corpora.items():
      out = text if isinstance(text, Path) else self._packed(name, text)
      found[name] = open_packed(out, self.subject.tokenizer)
    return found

  def _packed(self, name: str, text: Iterable[Document]) -> Path:
    tokenizer, length, eos = self.subject.tokenizer, self.recipe.recover.seq_len, self.subject.eos[0]
    out, note = self.folder.data / name, self.folder.measured / ("-".join(filter(None, ("data", name))) + ".json")
    text_digest = digest(text)

    def make() -> dict[str, Any]:
      size = sum(len(document.text) for document in text)
      workers = min(1 + size // _WORTH, os.cpu_count() or 1)
      packed = pack(text, tokenizer, seq_len=length, out=out, eos=eos, workers=workers, overwrite=True)
      return {"digest": packed.digest}

    key = text_digest, tokenizer_digest(tokenizer), length
    standing(note, key, make, product=out / MANIFEST)
    return out

  def recovered(self) -> Recovered:
    """Returns the pruned model after continued pretraining; the whole one is let go first."""
    start, corpora, cut_by = self.small, self.corpora, self.cut_by
    del self.small, self.whole
    return self._recover(start, self.recipe.recover.steps, self.folder.path, corpora, cut_by)

  def _recover(
    self, start: Llama, steps: int, folder: Path, corpora: Mapping[str, Packed], cut_by: tuple[Any, ...]
  ) -> Recovered:
    settings, data = dataclasses.replace(self.recipe.recover, steps=steps), self.recipe.data
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
    meta = {"source": self.subject.identity, "cut": json.loads(json.dumps(cut_by, default=str)), "data": identity}
    return recover(start, batches, settings, folder, meta=meta)

  def _scores(self, keep: Layers) -> dict[str, Any]:
    """Returns the scores of the model of the layers `keep`: scores.json of all, files of their own of later rounds."""
    recipe, subject = self.recipe, self.subject
    self._rounds.append(keep)
    criteria = tuple(dict.fromkeys((*named(recipe.score.criteria), *filter(None, (recipe.prune.criterion,)))))
    later = len(keep) < subject.checkpoint.layers
    out = self.folder.measured / f"scores-of-{len(keep)}-layers.json" if later else self.folder.scores
    between = (recipe.recover, recipe.prune.recover_between) if later and recipe.prune.recover_between else ()

    def make() -> dict[str, Any]:
      left = keep if later else None
      return stages.scores(
        subject, self._after(keep), self.texts, recipe.score, criteria, recipe.data, out, keep=left, trained=between
      )

    key = (subject.identity, keep, digest(self.texts.calibration), recipe.score, criteria, between)
    return standing(out, key, make)

  def _layer_share(self) -> float:
    """Returns a layer's share of the decode time, timed once: a restart must not come to another plan."""
    key = self.subject.identity, machine()
    path = self.folder.measured / "layer_share.json"
    return standing(path, key, lambda: {"share": stages.layer_share(self.whole)})["share"]

  def _searched(self, count: int | None) -> Plan:
    """Returns the plan of a merge that chooses the layers itself, searched once."""

    def make() -> dict[str, Any]:
      return plans.to_json(stages.merged_plan(self.subject, self.recipe, self.whole, self.texts, count))

    path = self.folder.measured / "merged.json"
    key = self.subject.identity, digest(self.texts.calibration), self.recipe.prune.merge, self.recipe.merging, count
    return plans.from_json(standing(path, key, make), str(path))

  def _after(self, keep: Layers) -> Llama:
    """Returns the model of the layers `keep` of a round: of later rounds recovered, where the recipe asks for it."""
    number = self._rounds.index(keep)
    if number == 0 or not self.recipe.prune.recover_between:
      return keep_layers(self.whole, keep)
    before = self._rounds[number - 1]
    start = _places(self._after(before), before, keep)
    folder = self.folder.path / "rounds" / f"{len(keep)}-layers"
    about = (self._rounds[: number + 1], self.recipe.prune.recover_between)
    return self._recover(start, self.recipe.prune.recover_between, folder, self.corpora, about).model


def _places(model: Llama, layers: Layers, keep: Layers) -> Llama:
  """Returns the layers `keep` of a model that has just `layers`."""
  return keep_layers(model, [layers.index(layer) for layer in keep])
