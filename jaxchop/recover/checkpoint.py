"""Checkpoints of a run: saved beside the training, proven by reading them back, restored only when their digests hold.

`checkpoints/00000050/` holds `state/` (Orbax, flat dicts {dotted name: array}) and `manifest.json` (digests). A folder
appears by rename, when it is complete and verified. Folders without such a manifest are neither read nor deleted.
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
from orbax.checkpoint import v1 as ocp

from jaxchop.errors import JaxchopError
from jaxchop.model.tree import flatten, unflatten
from jaxchop.recover import manifest
from jaxchop.recover.manifest import Damaged

log = logging.getLogger("jaxchop")
# What Orbax and TensorStore raise on damaged files.
_UNREADABLE = (OSError, ValueError, KeyError, TypeError, RuntimeError, AssertionError)


class Restored(NamedTuple):
  """A verified checkpoint, on the devices."""

  step: int
  model: Any
  opt_state: Any
  meta: dict[str, Any]


class Checkpoints:
  """The checkpoints in one folder, newest `keep` of them; one save at a time runs beside the training."""

  def __init__(self, folder: Path, keep: int = 2):
    self.folder, self.keep = Path(folder).absolute(), max(keep, 1)
    self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
    self._saving: Future[None] | None = None
    self._damaged: set[int] = set()

  def save(self, step: int, model: Any, opt_state: Any, meta: Mapping[str, Any]) -> None:
    """Starts to save; the arrays may be donated as soon as this returns.

    Waits for the save before it, and raises the JaxchopError of one that failed.
    """
    self.wait()
    # On a CPU these are views; an array that has one is copied, not overwritten, when it is donated.
    items = {
      "model": {name: np.asarray(leaf) for name, leaf in flatten(model).items()},
      "optimizer": {name: np.asarray(leaf) for name, leaf in flatten(opt_state).items()},
    }
    self._saving = self._writer.submit(self._save, step, items, dict(meta))

  def wait(self) -> None:
    """Returns when nothing is being saved any more; raises the JaxchopError of a save that failed."""
    saving, self._saving = self._saving, None
    if saving is not None:
      saving.result()

  def poll(self) -> None:
    """Raises the JaxchopError of a save that has failed meanwhile; does not wait."""
    if self._saving is not None and self._saving.done():
      self.wait()

  def metas(self) -> list[tuple[int, dict[str, Any]]]:
    """Returns step and meta of every checkpoint, newest first, without a look at its arrays."""
    return [(step, found["meta"]) for step, _, found in self._candidates()]

  def restore_latest(self, model: Any, opt_state: Any, step: int | None = None) -> Restored | None:
    """Returns the newest checkpoint whose digests hold, placed as the given (abstract) trees; None if there is none.

    With `step`, only that one counts. Logs what it skips and why. Raises JaxchopError when a checkpoint's names, shapes
    or dtypes are not those asked for.
    """
    target = {"model": flatten(model), "optimizer": flatten(opt_state)}
    for found_step, path, found in self._candidates():
      if step not in (None, found_step):
        continue
      _refuse_another(path, target, found["leaves"])
      try:
        items = _load(path, jax.tree.map(_placed, target), found["leaves"])
      except Damaged as error:
        self._skip(path, error)
        continue
      trees = unflatten(model, items["model"]), unflatten(opt_state, items["optimizer"])
      return Restored(found_step, *trees, found["meta"])
    return None

  def _candidates(self) -> Iterator[tuple[int, Path, dict[str, Any]]]:
    for step, path in reversed(_steps(self.folder)):
      try:
        yield step, path, manifest.read(path)
      except Damaged as error:
        self._skip(path, error)

  def _skip(self, path: Path, error: Damaged) -> None:
    log.warning("%s is skipped: %s", path, error)
    self._damaged.add(int(path.name))

  def _save(self, step: int, items: dict[str, dict[str, np.ndarray]], meta: dict[str, Any]) -> None:
    aside, path = self.folder / f"{step:08}.saving", self.folder / f"{step:08}"
    try:
      self._clear()
      leaves = manifest.describe(items)
      aside.mkdir(parents=True)
      with _orbax():
        ocp.save_checkpointables(str(aside / "state"), items)
      items.clear()
      _load(aside, {i: {n: _blank(leaf) for n, leaf in flat.items()} for i, flat in leaves.items()}, leaves)
      manifest.write(aside, step=step, meta=meta, leaves=leaves)
      self._commit(aside, path)
    except (*_UNREADABLE, Damaged) as error:
      shutil.rmtree(aside, ignore_errors=True)
      raise JaxchopError(f"{path}: cannot be saved ({_one_line(error)}); {_room(self.folder)}") from error

  def _commit(self, aside: Path, path: Path) -> None:
    if path.exists():
      # Only a checkpoint that restoring has skipped can stand here; it stays, for whoever wants to look into it.
      damaged = path.with_suffix(".damaged")
      shutil.rmtree(damaged, ignore_errors=True)
      path.rename(damaged)
      self._damaged.discard(int(path.name))
    aside.rename(path)
    _sync(self.folder)
    step = int(path.name)
    good = [(s, p) for s, p in _steps(self.folder) if s <= step and s not in self._damaged and _ours(p)]
    for _, old in good[: -self.keep]:
      leaving = old.with_suffix(".deleting")
      old.rename(leaving)
      shutil.rmtree(leaving)

  def _clear(self) -> None:
    """Removes what a killed process left half written or half deleted; these names are ours alone."""
    for path in self.folder.glob("*"):
      if re.fullmatch(r"\d{8,}\.(saving|deleting)", path.name):
        shutil.rmtree(path)


def load_weights(folder: Path, step: int | None = None) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
  """Returns ({dotted name: array}, meta) of a run's model on the host, at `step` or the newest one that verifies.

  Raises JaxchopError when no checkpoint, or not the one asked for, is there and whole.
  """
  checkpoints = Checkpoints(folder)
  for found_step, path, found in checkpoints._candidates():
    if step in (None, found_step):
      leaves = found["leaves"]["model"]
      try:
        items = _load(path, {"model": {n: _blank(leaf) for n, leaf in leaves.items()}}, found["leaves"])
      except Damaged as error:
        checkpoints._skip(path, error)
        continue
      return dict(items["model"]), found["meta"]
  wanted = "checkpoint" if step is None else f"checkpoint of step {step}"
  raise JaxchopError(f"{folder}: no whole {wanted} is here; run the recovery again")


def _steps(folder: Path) -> list[tuple[int, Path]]:
  """Returns (step, path) of everything that is named like a finished checkpoint, oldest first."""
  if not folder.is_dir():
    return []
  return sorted((int(p.name), p) for p in folder.iterdir() if re.fullmatch(r"\d{8,}", p.name) and p.is_dir())


def _ours(path: Path) -> bool:
  try:
    manifest.read(path)
  except Damaged:
    return False
  return True


def _orbax() -> Any:
  """Returns how to save and load: without compression, which takes most of the time and shrinks weights by a tenth."""
  context = ocp.Context()
  context.array.saving.use_compression = False
  return context


def _load(path: Path, target: Mapping[str, Any], leaves: Mapping[str, Any]) -> dict[str, Any]:
  try:
    with _orbax():
      items = ocp.load_checkpointables(str(path / "state"), dict(target))
  except _UNREADABLE as error:
    raise Damaged(f"it cannot be read: {_one_line(error)}") from error
  manifest.verify(items, leaves)
  return items


def _placed(leaf: Any) -> jax.ShapeDtypeStruct:
  sharding = getattr(leaf, "sharding", None) or jax.sharding.SingleDeviceSharding(jax.devices()[0])
  return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _blank(leaf: Mapping[str, Any]) -> np.ndarray:
  return np.empty(leaf["shape"], leaf["dtype"])


def _refuse_another(path: Path, target: Mapping[str, Any], leaves: Mapping[str, Any]) -> None:
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


def _room(folder: Path) -> str:
  existing = next(p for p in (folder, *folder.parents) if p.exists())
  return f"{shutil.disk_usage(existing).free / 1e9:.1f} GB are free there; older checkpoints are untouched"


def _one_line(error: BaseException) -> str:
  return " ".join(str(error).split())[:200] or type(error).__name__


def _sync(folder: Path) -> None:
  handle = os.open(folder, os.O_RDONLY)
  try:
    os.fsync(handle)
  finally:
    os.close(handle)
