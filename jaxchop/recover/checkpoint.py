"""Checkpoints of a run: saved beside the training, proven by reading them back, restored only when their digests hold.

`checkpoints/00000050/` holds `state/` (Orbax, flat dicts {dotted name: array}) and `manifest.json` (digests). A folder
appears by rename, when it is complete and verified. Folders without such a manifest are neither read nor deleted. Where
several processes save together, each writes and proves its share, and process 0 alone decides, names and deletes.
"""

import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxchop.errors import JaxchopError
from jaxchop.files import free_bytes
from jaxchop.model.tree import flatten, unflatten
from jaxchop.parallel.channel import ALONE, Channel
from jaxchop.recover import digest, manifest, store
from jaxchop.recover.manifest import Damaged, Leaves
from jaxchop.training import RecoverConfig
from jaxchop.wording import size

log = logging.getLogger("jaxchop")


class Unsaved(JaxchopError):
  """A save that failed, or for which there is no room: the checkpoints before it stand."""


class Restored(NamedTuple):
  """A verified checkpoint, on the devices."""

  step: int
  model: Any
  opt_state: Any
  meta: dict[str, Any]


class Keep(NamedTuple):
  """Which checkpoints stay."""

  # The newest ones; at least one.
  last: int = 2
  # Those of steps that it divides; 0 for none.
  every: int = 0
  # Those of the lowest "held_out_loss" in their meta.
  best: int = 0

  @classmethod
  def by(cls, config: RecoverConfig) -> "Keep":
    return cls(config.keep_checkpoints, config.keep_every, config.keep_best)

  def chosen(self, losses: Mapping[int, float | None]) -> set[int]:
    """Returns which steps stay, of checkpoints with these held-out losses."""
    steps = sorted(losses)
    measured = sorted((loss, step) for step, loss in losses.items() if loss is not None)
    by_step = {step for step in steps if self.every and step % self.every == 0}
    return by_step | set(steps[-max(self.last, 1) :]) | {step for _, step in measured[: self.best]}


KEEP = Keep()


class Checkpoints:
  """The checkpoints in one folder, of which `keep` says which stay; one save at a time runs beside the training.

  All processes of `hosts` call the same methods in the same order, and see the same folder.
  """

  def __init__(self, folder: Path, keep: Keep = KEEP, hosts: Channel = ALONE):
    self.folder, self.keep, self.hosts = Path(folder).absolute(), keep, hosts
    self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
    self._saving: Future[None] | None = None
    self._damaged: set[int] = set()

  def save(self, step: int, model: Any, opt_state: Any, meta: Mapping[str, Any]) -> None:
    """Starts to save; the arrays may be donated as soon as this returns.

    Waits for the save before it, and raises Unsaved for one that failed.
    """
    self.wait()
    items = _items(model, opt_state)
    leaves, sums = manifest.described(items), digest.started(_joined(items), copies=False)
    aside = self.folder / f"{step:08}.saving"
    writing: Any = None
    failed = ""
    try:
      if self.hosts.index == 0:
        self.clear()
        self.folder.mkdir(parents=True, exist_ok=True)
      writing = store.write(aside / "state", items)
    except store.UNREADABLE as error:
      failed = store.one_line(error)
    self._saving = self._writer.submit(self._finish, step, writing, leaves, sums, dict(meta), failed)

  def wait(self) -> None:
    """Returns when nothing is being saved any more; raises Unsaved for a save that failed."""
    saving, self._saving = self._saving, None
    if saving is not None:
      saving.result()

  def poll(self) -> None:
    """Raises Unsaved for a save that has failed meanwhile; does not wait."""
    if self._saving is not None and self._saving.done():
      self.wait()

  def steps(self) -> list[int]:
    """Returns the steps of which a checkpoint is there, oldest first, but for those that were found damaged."""
    return [step for step, _ in _steps(self.folder) if step not in self._damaged]

  def metas(self) -> list[tuple[int, dict[str, Any]]]:
    """Returns step and meta of every checkpoint, newest first, without a look at its arrays."""
    return [(found["step"], found["meta"]) for found in self._candidates()]

  def clear(self) -> None:
    """Removes what a killed process left half written or half deleted; these names are ours alone."""
    for path in self.folder.glob("*"):
      if re.fullmatch(r"\d{8,}\.(saving|deleting)", path.name):
        shutil.rmtree(path)

  def restore_latest(self, model: Any, opt_state: Any, step: int | None = None) -> Restored | None:
    """Returns the newest checkpoint whose digests hold, placed as the given (abstract) trees; None if there is none.

    With `step`, only that one counts. Logs what it skips and why. Raises JaxchopError when a checkpoint's names, shapes
    or dtypes are not those asked for.
    """
    target = _items(model, opt_state)
    candidates = (found for found in self._candidates() if step in (None, found["step"]))
    while found := self.hosts.first("newest checkpoint", lambda: next(candidates, None)):
      path = self.folder / f"{found['step']:08}"
      _refuse_another(path, target, found["leaves"])
      items, wrong = self._read(path, target, found["leaves"])
      if wrong:
        self._skip(path, wrong)
        continue
      trees = unflatten(model, items["model"]), unflatten(opt_state, items.get("optimizer", {}))
      return Restored(found["step"], *trees, found["meta"])
    return None

  def _read(self, path: Path, target: dict[str, Any], leaves: Leaves) -> tuple[dict[str, Any], str]:
    """Returns the arrays of a checkpoint and what is wrong with them, on which all processes agree."""
    items: dict[str, Any] = {}
    held, wrong = {}, ""
    try:
      items = store.read(path / "state", jax.tree.map(_placed, target))
      held = digest.finished(digest.started(_joined(items), copies=True))
    except Damaged as error:
      wrong = str(error)
    told = self.hosts.gather("restored", [wrong, held])
    wrong = next((words for words, _ in told if words), "")
    return items, wrong or _changed(leaves, digest.combined(held for _, held in told))

  def _candidates(self) -> Iterator[dict[str, Any]]:
    for step, path in reversed(_steps(self.folder)):
      try:
        yield manifest.read(path) | {"step": step}
      except Damaged as error:
        self._skip(path, str(error))

  def _skip(self, path: Path, why: str) -> None:
    if self.hosts.index == 0:
      log.warning("%s is skipped: %s", path, why)
    self._damaged.add(int(path.name))

  def _finish(self, step: int, writing: Any, leaves: Any, sums: Any, meta: dict[str, Any], failed: str) -> None:
    """Waits for what `save` began, proves it and puts it in its place; runs beside the training."""
    aside, path = self.folder / f"{step:08}.saving", self.folder / f"{step:08}"
    try:
      if not failed:
        writing.result()
      self._agree("written", failed)
      held = self.hosts.gather("digests", digest.finished(sums))
      _take(leaves, digest.combined(held))
      self._agree("read back", self._read_back(aside, leaves))
      self.hosts.first("committed", lambda: self._commit(aside, path, step, meta, leaves))
    except (*store.UNREADABLE, Damaged) as error:
      if self.hosts.index == 0:
        shutil.rmtree(aside, ignore_errors=True)
      why, free = store.one_line(error), size(free_bytes(self.folder))
      raise Unsaved(
        f"{path}: cannot be saved ({why}); {free} are free there; older checkpoints are untouched"
      ) from error

  def _agree(self, what: str, wrong: str) -> None:
    """Raises Damaged in every process where one of them says what is wrong."""
    if said := next(filter(None, self.hosts.gather(what, wrong)), ""):
      raise Damaged(said)

  def _read_back(self, aside: Path, leaves: Leaves) -> str:
    """Returns what is wrong with this process's share of what was written."""
    wrong = ""
    for wanted in store.groups(leaves, self.hosts.index, self.hosts.count):
      try:
        found = store.read(aside / "state", store.blank(leaves, wanted))
        mine = {i: {name: flat[name] for name in wanted[i]} for i, flat in found.items()}
        held = digest.combined([digest.finished(digest.started(_joined(mine), copies=False))])
        wrong = wrong or _changed({i: {n: leaves[i][n] for n in wanted[i]} for i in wanted}, held)
      except Damaged as error:
        wrong = str(error)
    return wrong

  def _commit(self, aside: Path, path: Path, step: int, meta: Mapping[str, Any], leaves: Leaves) -> None:
    manifest.write(aside, step=step, meta=meta, leaves=leaves)
    if path.exists():
      # Only a checkpoint that restoring has skipped can stand here; it stays, for whoever wants to look into it.
      damaged = path.with_suffix(".damaged")
      shutil.rmtree(damaged, ignore_errors=True)
      path.rename(damaged)
      self._damaged.discard(step)
    aside.rename(path)
    _sync(self.folder)
    good = {s: p for s, p in _steps(self.folder) if s <= step and s not in self._damaged and _meta(p) is not None}
    stay = self.keep.chosen({s: (_meta(p) or {}).get("held_out_loss") for s, p in good.items()})
    for old in (path for s, path in good.items() if s not in stay):
      leaving = old.with_suffix(".deleting")
      old.rename(leaving)
      shutil.rmtree(leaving)


def load_weights(folder: Path, step: int | None = None) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
  """Returns ({dotted name: array}, meta) of a run's model on the host, at `step` or the newest one that verifies.

  Raises JaxchopError when no checkpoint, or not the one asked for, is there and whole.
  """
  checkpoints = Checkpoints(folder)
  for found in checkpoints._candidates():
    if step in (None, found["step"]):
      path, leaves = checkpoints.folder / f"{found['step']:08}", {"model": found["leaves"]["model"]}
      items, wrong = checkpoints._read(path, store.blank(leaves, {"model": set(leaves["model"])}), leaves)
      if wrong:
        checkpoints._skip(path, wrong)
        continue
      return dict(items["model"]), found["meta"]
  wanted = "checkpoint" if step is None else f"checkpoint of step {step}"
  there = ", ".join(str(one) for one, _ in _steps(folder)) or "none"
  raise JaxchopError(f"{folder}: no whole {wanted} is here (steps there: {there}); run the recovery again")


def _items(model: Any, opt_state: Any) -> dict[str, dict[str, Any]]:
  """Returns a state as Orbax keeps it, which knows no empty dict."""
  items = {"model": flatten(model), "optimizer": flatten(opt_state)}
  return {item: flat for item, flat in items.items() if flat}


def _joined(items: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
  """Returns all arrays under one name each, as errors call them."""
  return {f"{item} {name}": leaf for item, flat in items.items() for name, leaf in flat.items()}


def _take(leaves: dict[str, dict[str, dict[str, Any]]], found: Mapping[str, Mapping[str, str]]) -> None:
  """Puts the digests into the description; raises Damaged on a value that is not finite."""
  for name, leaf in _joined(leaves).items():
    (leaf["digest"],) = found[name].values()
    if not leaf["digest"]:
      raise Damaged(f"{name} holds a value that is not finite")


def _changed(leaves: Leaves, found: Mapping[str, Mapping[str, str]]) -> str:
  """Returns in words which array, or which copy of it, is not what the manifest says."""
  for name, leaf in _joined(leaves).items():
    if name in found and set(found[name].values()) != {leaf["digest"]}:
      return f"{name} has changed since it was written"
  return ""


def _steps(folder: Path) -> list[tuple[int, Path]]:
  """Returns (step, path) of everything that is named like a finished checkpoint, oldest first."""
  if not folder.is_dir():
    return []
  return sorted((int(p.name), p) for p in folder.iterdir() if re.fullmatch(r"\d{8,}", p.name) and p.is_dir())


def _meta(path: Path) -> dict[str, Any] | None:
  """Returns what a checkpoint of ours says of itself."""
  try:
    return manifest.read(path)["meta"]
  except Damaged:
    return None


def _placed(leaf: Any) -> Any:
  if isinstance(leaf, np.ndarray):
    return leaf
  sharding = getattr(leaf, "sharding", None) or jax.sharding.SingleDeviceSharding(jax.devices()[0])
  return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _refuse_another(path: Path, target: Mapping[str, Any], leaves: Leaves) -> None:
  """Orbax casts silently to the dtype asked for, and speaks of trees where a person asks about layers."""
  for item, flat in target.items():
    there = {name: (leaf["dtype"], tuple(leaf["shape"])) for name, leaf in leaves[item].items()}
    asked = {name: (str(leaf.dtype), tuple(leaf.shape)) for name, leaf in flat.items()}
    for name in sorted(there.keys() | asked.keys()):
      if there.get(name) != asked.get(name):
        raise JaxchopError(
          f"{path}: {item} {name} is {_words(there.get(name))} there and {_words(asked.get(name))} here; "
          "this is another model's checkpoint: choose another folder"
        )


def _words(leaf: tuple[str, tuple[int, ...]] | None) -> str:
  return "absent" if leaf is None else f"{leaf[0]} {list(leaf[1])}"


def _sync(folder: Path) -> None:
  handle = os.open(folder, os.O_RDONLY)
  try:
    os.fsync(handle)
  finally:
    os.close(handle)
