"""A recovery on several devices is the recovery on one, and a restart of it is bitwise the same run."""

import dataclasses
import logging
import signal
from collections.abc import Generator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import tiny_run
from test_loop import curve
from tiny_run import CONFIG, Records, records, settings, tiny_model

from jaxchop.config import MeshConfig
from jaxchop.errors import Interrupted, UsageError
from jaxchop.model.tree import flatten
from jaxchop.recover.curve import read_curve
from jaxchop.recover.loop import Recovered, recover

ROWS = 8
ONE = MeshConfig(fsdp=1)
MESHES = {
  "dp8": MeshConfig(data=8, fsdp=1),
  "fsdp8": MeshConfig(fsdp=8),
  "fsdp4": MeshConfig(fsdp=4),
  "fsdp4 x tp2": MeshConfig(fsdp=4, tensor=2),
  "dp2 x fsdp2 x tp2": MeshConfig(data=2, fsdp=2, tensor=2),
  "tp2": MeshConfig(fsdp=1, tensor=2),
}


class Rows(Records):
  def from_step(self, step: int) -> Generator[np.ndarray, None, None]:
    for _ in super().from_step(step):
      yield records(step, rows=ROWS)
      step += 1


def run(folder: Path, mesh: MeshConfig, *, number: int = 0, at: int = -1, **changes: Any) -> Recovered:
  config = settings(batch_size=ROWS, mesh=mesh, **changes)
  return recover(tiny_model(), Rows(number, at), config, folder, meta={"data": "count"})


def losses(folder: Path) -> list[float]:
  return [line["loss"] for line in read_curve(folder / "metrics.jsonl")]


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Recovered]:
  """The run on a single device."""
  folder = tmp_path_factory.mktemp("one")
  return folder, run(folder, ONE)


@pytest.mark.parametrize("name", MESHES)
def test_every_mesh_has_the_losses_and_weights_of_one_device(one, tmp_path, name):
  done = run(tmp_path, MESHES[name])
  np.testing.assert_allclose(losses(tmp_path), losses(one[0]), rtol=0, atol=1e-5)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-4), done.model, one[1].model)


@pytest.mark.parametrize("name", MESHES)
def test_weights_lie_where_the_mesh_says(tmp_path, name):
  mesh = MESHES[name]
  leaves = flatten(run(tmp_path, mesh, steps=1).model)
  kernel = leaves["layers.0.mlp.gate.kernel"]
  assert kernel.addressable_shards[0].data.shape == (CONFIG.width // mesh.fsdp, CONFIG.mlp_width // mesh.tensor)
  assert len(kernel.sharding.device_set) == mesh.data * mesh.fsdp * mesh.tensor
  assert leaves["norm.scale"].sharding.is_fully_replicated


@pytest.mark.parametrize(
  "changes",
  [{"layout": "unrolled"}, {"accumulate": 2}, {"remat": True}],
  ids=["unrolled", "accumulated", "recomputed"],
)
def test_other_ways_to_compute_the_step_agree_on_a_mesh_too(one, tmp_path, changes):
  run(tmp_path, MESHES["dp2 x fsdp2 x tp2"], **changes)
  np.testing.assert_allclose(losses(tmp_path), losses(one[0]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["dp8", "fsdp4", "fsdp4 x tp2"])
def test_restarts_are_bitwise_the_same_run(tmp_path, name):
  """20 steps, 10 + 10, and a restart after every one, compared as hex."""
  whole, mesh = run(tmp_path / "whole", MESHES[name]), MESHES[name]
  with pytest.raises(Interrupted):
    run(tmp_path / "halves", mesh, number=signal.SIGINT, at=9)
  halves = run(tmp_path / "halves", mesh)
  for step in range(19):
    with pytest.raises(Interrupted):
      run(tmp_path / "steps", mesh, number=signal.SIGINT, at=step)
  steps = run(tmp_path / "steps", mesh)
  assert curve(tmp_path / "whole") == curve(tmp_path / "halves") == curve(tmp_path / "steps")
  for again in (halves, steps):
    jax.tree.map(np.testing.assert_array_equal, again.model, whole.model)


def test_a_run_may_go_on_on_another_mesh(one, tmp_path):
  """8 devices, then 4, 1 and 8 again."""
  for at, name in ((4, "fsdp8"), (9, "fsdp4")):
    with pytest.raises(Interrupted):
      run(tmp_path, MESHES[name], number=signal.SIGINT, at=at)
  with pytest.raises(Interrupted):
    run(tmp_path, ONE, number=signal.SIGINT, at=14)
  run(tmp_path, MESHES["fsdp4 x tp2"])
  np.testing.assert_allclose(losses(tmp_path), losses(one[0]), rtol=0, atol=1e-5)


def test_unset_the_mesh_takes_all_devices_that_the_rows_divide_among(tmp_path, caplog):
  with caplog.at_level(logging.INFO, logger="jaxchop"):
    done = recover(tiny_model(), Records(), settings(steps=1, mesh=MeshConfig()), tmp_path)
  assert len(flatten(done.model)["embedding"].sharding.device_set) == 4
  assert "mesh: 4 of 8 devices work: data 1, fsdp 4, tensor 1" in caplog.messages


@pytest.mark.parametrize(
  ("mesh", "said"),
  [
    (MeshConfig(data=-1, fsdp=-1), "data and fsdp are -1"),
    (MeshConfig(data=0), "mesh.data is 0"),
    (MeshConfig(data=16, fsdp=1), "take 16 devices, there are 8"),
    (MeshConfig(data=3, fsdp=1), "does not divide its 8 rows"),
    (MeshConfig(fsdp=1, tensor=4), "does not divide the model's key/value heads, 2"),
  ],
)
def test_a_mesh_that_does_not_fit_is_refused_by_name(tmp_path, mesh, said):
  with pytest.raises(UsageError, match=said):
    run(tmp_path, mesh)
  assert not list(tmp_path.iterdir())


def test_a_width_that_the_parts_do_not_divide_is_refused(tmp_path):
  model = tiny_model(config=dataclasses.replace(tiny_run.CONFIG, width=12))
  with pytest.raises(UsageError, match=r"mesh\.fsdp is 8, which does not divide the model's width, 12"):
    recover(model, Rows(), settings(batch_size=ROWS, mesh=MESHES["fsdp8"]), tmp_path)
