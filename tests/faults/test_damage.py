"""Flipped bits and cut files: a checkpoint comes back as it was saved or not at all; plain Orbax is not so strict."""

import gc
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

from jaxchop.model.tree import flatten
from jaxchop.recover import store
from jaxchop.recover.checkpoint import Checkpoints

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(autouse=True)
def collected():
  """What Orbax leaves behind of a failed load is collected here, where the complaint is expected."""
  yield
  gc.collect()


def state() -> tuple[dict[str, Any], dict[str, Any]]:
  """Random weights, which no compression hides, and an optimizer's."""
  draw = jax.random.normal(jax.random.key(0), (40, 64))
  return {"embedding": draw, "norm": jnp.ones(64)}, {"count": jnp.int32(7), "mu": {"embedding": draw * 0.1}}


def damaged(folder: Path, draw: np.random.Generator) -> str:
  """Flips one bit of one file of a checkpoint, or cuts the file somewhere; each byte is as likely as another."""
  files = sorted(path for path in (folder / "00000001").rglob("*") if path.is_file() and path.stat().st_size)
  sizes = np.array([path.stat().st_size for path in files], float)
  file = files[draw.choice(len(files), p=sizes / sizes.sum())]
  content = bytearray(file.read_bytes())
  place = int(draw.integers(len(content)))
  if draw.random() < 0.75:
    content[place] ^= 1 << int(draw.integers(8))
    file.write_bytes(content)
    return f"bit of byte {place} of {file.relative_to(folder)}"
  file.write_bytes(content[:place])
  return f"{file.relative_to(folder)} cut to {place}"


def restored_by_orbax(folder: Path, wanted: dict[str, Any]) -> str:
  """What Orbax alone makes of it: `refused`, `right`, or `wrong` without a word."""
  here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  target = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), wanted)
  try:
    found = ocp.load_checkpointables(str(folder / "00000001" / "state"), target)
  except store.UNREADABLE:
    return "refused"
  same = jax.tree.map(lambda a, b: np.asarray(a).tobytes() == np.asarray(b).tobytes(), found, wanted)
  return "right" if all(jax.tree.leaves(same)) else "wrong"


@pytest.mark.parametrize("trials", [16, pytest.param(200, marks=pytest.mark.slow)])
def test_damage_is_harmless_or_refused(tmp_path: Path, trials: int) -> None:
  model, opt_state = state()
  good, work = tmp_path / "good", tmp_path / "work"
  checkpoints = Checkpoints(good)
  checkpoints.save(1, model, opt_state, {})
  checkpoints.wait()
  wanted = {"model": flatten(model), "optimizer": flatten(opt_state)}
  assert restored_by_orbax(good, wanted) == "right"
  draw = np.random.default_rng(trials)
  ours, plain = {"refused": 0, "right": 0, "wrong": 0}, {"refused": 0, "right": 0, "wrong": 0}
  for _ in range(trials):
    shutil.copytree(good, work)
    what = damaged(work, draw)
    found = Checkpoints(work).restore_latest(model, opt_state)
    if found is None:
      ours["refused"] += 1
    else:
      same = jax.tree.map(np.array_equal, (found.model, found.opt_state), (model, opt_state))
      assert all(jax.tree.leaves(same)), what
      ours["right"] += 1
    plain[restored_by_orbax(work, wanted)] += 1
    shutil.rmtree(work)
  print(f"{trials} trials: jaxchop {ours}, Orbax alone {plain}")
  assert ours["refused"] and ours["right"]
