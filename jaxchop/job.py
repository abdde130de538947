"""A recipe at work: its model, text and plan, opened when first needed, and the training that it asks for."""

import contextlib
import dataclasses
import functools
from collections.abc import Generator, Iterable
from pathlib import Path
from typing import Any

from jaxchop import packing, retrain, stages
from jaxchop.config import Recipe
from jaxchop.data.packed import Packed, open_packed, read_manifest
from jaxchop.data.sources import digest
from jaxchop.data.texts import Texts, is_cache, local_cache, read_splits
from jaxchop.errors import UsageError
from jaxchop.files import local_path, write_json
from jaxchop.hub.export import export_model
from jaxchop.hub.load import open_checkpoint
from jaxchop.model.llama import Llama
from jaxchop.parallel.channel import ALONE, Channel
from jaxchop.prune import plan as plans
from jaxchop.prune.criteria import named
from jaxchop.prune.plan import Plan
from jaxchop.prune.surgery import keep_layers
from jaxchop.recover.fading import Fading
from jaxchop.recover.frozen import recovered_parts
from jaxchop.recover.outcome import Recovered
from jaxchop.recover.step import make_step
from jaxchop.recover.teacher import needed
from jaxchop.recover.trackers import require
from jaxchop.run_folder import RunFolder, standing, stood
from jaxchop.subject import Subject
from jaxchop.versions import machine

Layers = tuple[int, ...]


class Job:
  """A recipe, its run folder, and what several stages share, opened when first needed."""

  def __init__(self, recipe: Recipe, hosts: Channel = ALONE, plan: Plan | None = None):
    """Raises UsageError on settings that contradict each other across rooms or fit neither model nor devices.

    Where `hosts` joins several processes, all of them ask for the same things in the same order. Process 0 does what
    one process can do, and the others take its results; recovery is the work of all. A `plan` that was made before is
    taken as it is, whatever the recipe would choose.
    """
    if recipe.prune.recover_between and (recipe.prune.merge or not recipe.recover.steps or recipe.prune.rounds == 1):
      raise UsageError(
        "prune.recover_between: needs prune.rounds above 1, recover.steps above 0 and no prune.merge; leave it out"
      )
    if recipe.recover.trainable == "replacement" and not recipe.prune.merge:
      raise UsageError("recover.trainable: replacement trains what prune.merge made; set prune.merge or train others")
    if recipe.prune.fade and (recipe.prune.merge or recipe.prune.recover_between):
      raise UsageError(
        f"prune.fade is {recipe.prune.fade}: so many steps come before a cut that only removes layers; it goes with "
        "neither prune.merge nor prune.recover_between"
      )
    if recipe.prune.recover_between and recipe.recover.fork:
      raise UsageError("recover.fork: a recovery between rounds has no run to fork from; leave one of the two out")
    self.recipe, self.hosts, self._given = recipe, hosts, plan
    self.folder = RunFolder(local_path(recipe.out))
    # Where what a teacher expects is kept.
    self.taught_at = self.folder.path / "taught"
    self.subject = Subject(recipe.model)
    if hosts.count > 1:
      # Every weight is read once for it, by one of them.
      self.subject.identity = hosts.first("source", lambda: self.subject.identity)
    if recipe.recover.steps or recipe.prune.fade:
      # Refused now, not when an hour of scoring and measuring is over.
      make_step(recipe.recover)
      needed(recipe.recover.distill)
      require(recipe.recover.track)
      retrain.mesh_of(self)
      if recipe.recover.evaluate_every:
        self.texts.require("held_out")
      if recipe.recover.evaluate_suite:
        retrain.suites_along(self)
      for spec in filter(is_cache, self.texts.specs.values()):
        if (length := read_manifest(local_cache(spec), self.subject.tokenizer).seq_len) != recipe.recover.seq_len:
          raise UsageError(
            f"{spec}: holds records of {length} tokens, not of {recipe.recover.seq_len}: set recover.seq_len to "
            f"{length} or build another cache"
          )
    # What was left in each round of scoring, the whole model first.
    self._rounds: list[Layers] = []

  @contextlib.contextmanager
  def locked(self) -> Generator[None]:
    """Keeps other runs out of the folder while the block runs."""
    with contextlib.ExitStack() as stack:
      self.hosts.first("lock", lambda: stack.enter_context(self.folder.locked()))
      yield

  @functools.cached_property
  def texts(self) -> Texts:
    return read_splits(self.recipe.data, lambda: (self.subject.tokenizer, self.subject.eos[0]))

  @functools.cached_property
  def whole(self) -> Llama:
    return self.subject.load()

  @functools.cached_property
  def plan(self) -> Plan:
    """Which layers stay: plan.json, from scores.json where a criterion chooses."""
    plan = self._given or stages.plan(self.subject, self.recipe, self._scores, self._layer_share, self._searched)
    self.hosts.first("plan", lambda: write_json(self.folder.plan, plans.to_json(plan)))
    return plan

  @functools.cached_property
  def small(self) -> Llama:
    """The pruned model before recovery; what the prune leaves as it is, it shares with the whole one."""
    plan = self.plan
    if self.recipe.prune.recover_between:
      return _places(self._after(self._rounds[-1]), self._rounds[-1], plan.keep)
    if self.recipe.prune.fade:
      return keep_layers(self._faded(), plan.keep)
    return stages.cut(self.subject, self.whole, plan, self.recipe.merging, lambda: self.texts)

  @property
  def cut_by(self) -> tuple[Any, ...]:
    """What the pruned weights depend on beside the whole ones."""
    plan = self.plan
    fitted = (plan.repair, self.recipe.merging, digest(self.texts.training)) if plan.repair else ()
    trained = (self._rounds, self.recipe.prune.recover_between, self.recipe.recover, self.trained_on)
    prune = self.recipe.prune
    faded = (prune.fade, prune.fade_penalty, retrain.fading(self), self.trained_on) if prune.fade else ()
    return plan.keep, *plan.merges, *fitted, *(trained if prune.recover_between else ()), *faded

  @property
  def trained_before(self) -> bool:
    """Whether the pruned model comes out of a training, the work of all processes."""
    return bool(self.recipe.prune.recover_between or self.recipe.prune.fade)

  @functools.cached_property
  def trained_on(self) -> Any:
    """What the recovered weights depend on of the text: digests, by corpus where there are several, and the weights."""
    found = {name: packing.identity(self, text) for name, text in self.texts.corpora.items()}
    return [found, self.recipe.data.weights] if self.recipe.data.corpora else found[""]

  @functools.cached_property
  def corpora(self) -> dict[str, Packed]:
    """The token records to train on, by corpus: text is packed once, and every byte is checked each time."""
    found = {}
    for name, text in self.texts.corpora.items():
      out = text if isinstance(text, Path) else packing.packed(self, name, text)
      found[name] = open_packed(out, self.subject.tokenizer)
    return found

  def recovered(self) -> Recovered:
    """Returns the pruned model after continued pretraining; the whole one is let go first."""
    retrain.check(self)
    settings, cut_by, start = retrain.fitted(self), self.cut_by, self.start()
    batches, teacher = retrain.batches_of(self, settings), retrain.teacher_of(self)
    keep = self.plan.keep if self.recipe.recover.distill.teacher is None else None
    for name in ("small", "whole"):
      self.__dict__.pop(name, None)
    return retrain.train(self, start, settings, self.folder.path, batches, cut_by, teacher, keep)

  def start(self) -> Llama:
    """Returns the pruned model where recovery wants it: what is in no memory yet, each process reads its parts of."""
    plan, checkpoint = self.plan, self.subject.checkpoint
    if self.trained_before or (self.hosts.count == 1 and ("small" in self.__dict__ or _made(plan))):
      return self.small
    keep: Iterable[int] = plan.keep
    if _made(plan):
      folder = self.folder.path / "cut"
      self.hosts.first("cut", lambda: self._write_cut(folder))
      checkpoint, keep = open_checkpoint(str(folder)), range(len(plan.keep))
    return retrain.load_spread(self, checkpoint, tuple(keep))

  def _write_cut(self, folder: Path) -> None:
    """Writes what only process 0 has made, for the others to read."""
    export_model(
      self.small,
      self.subject.checkpoint,
      folder,
      keep=self.plan.keep,
      dtype="float32",
      overwrite=True,
      readme="The pruned model before its recovery.\n",
      provenance={"reference": None},
    )

  def _scores(self, keep: Layers) -> dict[str, Any]:
    """Returns the scores of the model of the layers `keep`: scores.json of all, files of their own of later rounds."""
    recipe, subject = self.recipe, self.subject
    self._rounds.append(keep)
    criteria = tuple(dict.fromkeys((*named(recipe.score.criteria), *filter(None, (recipe.prune.criterion,)))))
    later = len(keep) < subject.checkpoint.layers
    out = self.folder.measured / f"scores-of-{len(keep)}-layers.json" if later else self.folder.scores
    between = (recipe.recover, recipe.prune.recover_between) if later and recipe.prune.recover_between else ()

    key = (subject.identity, keep, digest(self.texts.calibration), recipe.score, criteria, between)
    if found := self.hosts.first("scores stand", lambda: stood(out, key)):
      return found
    # A recovery between rounds is the work of all processes.
    model = self._after(keep) if between or self.hosts.index == 0 else None

    def make() -> dict[str, Any]:
      left = keep if later else None
      assert model is not None
      return stages.scores(
        subject, model, self.texts, recipe.score, criteria, recipe.data, out, keep=left, trained=between
      )

    return self.hosts.first("scores", lambda: standing(out, key, make))

  def _layer_share(self) -> float:
    """Returns a layer's share of the decode time, timed once: a restart must not come to another plan."""
    key = self.subject.identity, machine()
    path = self.folder.measured / "layer_share.json"
    make = lambda: {"share": stages.layer_share(self.whole)}  # noqa: E731
    return self.hosts.first("layer share", lambda: standing(path, key, make))["share"]

  def _searched(self, count: int | None) -> Plan:
    """Returns the plan of a merge that chooses the layers itself, searched once."""

    def make() -> dict[str, Any]:
      return plans.to_json(stages.merged_plan(self.subject, self.recipe, self.whole, self.texts, count))

    path = self.folder.measured / "merged.json"
    key = self.subject.identity, digest(self.texts.calibration), self.recipe.prune.merge, self.recipe.merging, count
    return plans.from_json(self.hosts.first("merges", lambda: standing(path, key, make)), str(path))

  def _after(self, keep: Layers) -> Llama:
    """Returns the model of the layers `keep` of a round: of later rounds recovered, where the recipe asks for it."""
    number = self._rounds.index(keep)
    if number == 0 or not self.recipe.prune.recover_between:
      return keep_layers(self.whole, keep)
    before = self._rounds[number - 1]
    start = _places(self._after(before), before, keep)
    folder = self.folder.path / "rounds" / f"{len(keep)}-layers"
    about = (self._rounds[: number + 1], self.recipe.prune.recover_between)
    settings = dataclasses.replace(retrain.fitted(self), steps=self.recipe.prune.recover_between)
    original = keep if self.recipe.recover.distill.teacher is None else None
    batches, teacher = retrain.batches_of(self, settings), retrain.teacher_of(self)
    model = retrain.train(self, start, settings, folder, batches, about, teacher, original).model
    return model if self.hosts.count == 1 else _here(model, folder)

  def _faded(self) -> Llama:
    """Returns the whole model after the layers that go have faded out."""
    if not self.plan.drop:
      raise UsageError("prune.fade: no layer goes, so none can fade out; leave it out")
    settings, folder = retrain.fading(self), self.folder.path / "fade"
    start = self.whole if self.hosts.count == 1 else retrain.load_spread(self, self.subject.checkpoint)
    layers = Fading(self.plan.drop, self.recipe.prune.fade_penalty)
    batches, about = retrain.batches_of(self, settings), (self.plan.drop, self.recipe.prune.fade_penalty)
    model = retrain.train(self, start, settings, folder, batches, about, None, None, layers).model
    return model if self.hosts.count == 1 else _here(model, folder)


def _made(plan: Plan) -> bool:
  """Whether a plan's weights are in no checkpoint but were merged or fitted."""
  return bool(plan.merges or plan.repair)


def _here(model: Llama, folder: Path) -> Llama:
  """Returns a model that lies over several processes, whole in this one: its last checkpoint is."""
  return recovered_parts(RunFolder(folder).checkpoints, model.config, len(model.layers)).model


def _places(model: Llama, layers: Layers, keep: Layers) -> Llama:
  """Returns the layers `keep` of a model that has just `layers`."""
  return keep_layers(model, [layers.index(layer) for layer in keep])
