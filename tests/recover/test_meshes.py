"""A recovery on several devices is the recovery on one, and a restart of it is bitwise the same run."""

import dataclasses
import functools
import logging
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import tiny_run
from test_loop import curve
from tiny_run import CONFIG, Records, settings, tiny_model

from jaxchop.errors import Interrupted, UsageError
from jaxchop.model.tree import flatten
from jaxchop.parallel.mesh import make_mesh
from jaxchop.recover.curve import read_curve
from jaxchop.recover.loop import recover
from jaxchop.recover.outcome import Recovered
from jaxchop.training import MeshConfig, OptimizerConfig

# Whole runs that a restart must equal to the last bit, in programs compiled as everywhere else.
optimised = pytest.mark.optimised
ROWS = 4
ONE = MeshConfig(fsdp=1)
MESHES = {
  "dp4": MeshConfig(data=4, fsdp=1),
  "fsdp4": MeshConfig(fsdp=4),
  "fsdp2 x tp2": MeshConfig(fsdp=2, tensor=2),
  "dp2 x fsdp2": MeshConfig(data=2, fsdp=2),
  "fsdp2 x context2": MeshConfig(fsdp=2, context=2),
  "context2 x tp2": MeshConfig(fsdp=1, context=2, tensor=2),
  "context4": MeshConfig(fsdp=1, context=4),
}
# The others go with the slow tests.
EACH = {"fsdp2 x tp2"}
SOME = [name if name in EACH else pytest.param(name, marks=pytest.mark.slow) for name in MESHES]


def run(folder: Path, mesh: MeshConfig, *, number: int = 0, at: int = -1, **changes: Any) -> Recovered:
  config = settings(batch_size=ROWS, mesh=mesh, **changes)
  return recover(tiny_model(), Records(number, at), config, folder, meta={"data": "count"})


def losses(folder: Path) -> list[float]:
  return [line["loss"] for line in read_curve(folder / "metrics.jsonl")]


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Recovered]:
  """The run on a single device."""
  folder = tmp_path_factory.mktemp("one")
  return folder, run(folder, ONE)


@pytest.fixture(scope="module")
def on(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Recovered]]:
  """The run on a mesh, done once."""

  @functools.cache
  def done(name: str) -> tuple[Path, Recovered]:
    folder = tmp_path_factory.mktemp("mesh")
    return folder, run(folder, MESHES[name])

  return done


@optimised
@pytest.mark.parametrize("name", SOME)
def test_every_mesh_has_the_losses_and_weights_of_one_device(one, on, name):
  folder, done = on(name)
  np.testing.assert_allclose(losses(folder), losses(one[0]), rtol=0, atol=1e-5)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-4), done.model, one[1].model)


@optimised
@pytest.mark.parametrize("name", SOME)
def test_weights_lie_where_the_mesh_says(on, name):
  mesh, leaves = MESHES[name], flatten(on(name)[1].model)
  kernel = leaves["layers.0.mlp.gate.kernel"]
  assert kernel.addressable_shards[0].data.shape == (
    CONFIG.width // (mesh.fsdp * mesh.context),
    CONFIG.mlp_width // mesh.tensor,
  )
  assert len(kernel.sharding.device_set) == 4
  assert leaves["norm.scale"].sharding.is_fully_replicated


@pytest.mark.parametrize(
  "changes",
  [
    {"layout": "unrolled"},
    pytest.param({"accumulate": 2}, marks=pytest.mark.slow),
    pytest.param({"remat": "full"}, marks=pytest.mark.slow),
    pytest.param({"remat": "offload"}, marks=pytest.mark.slow),
  ],
  ids=["unrolled", "accumulated", "recomputed", "offloaded"],
)
def test_other_ways_to_compute_the_step_agree_on_a_mesh_too(one, tmp_path, changes):
  run(tmp_path, MESHES["fsdp2 x tp2"], **changes)
  np.testing.assert_allclose(losses(tmp_path), losses(one[0]), rtol=0, atol=1e-5)


@pytest.mark.slow
def test_bfloat16_on_a_mesh_stays_near_float32_and_goes_on_from_its_checkpoint(one, tmp_path):
  """Products of three digits give losses of about three digits; the master weights keep what was learned."""
  name, changes = "fsdp2 x context2", {"compute_dtype": "bfloat16"}
  with pytest.raises(Interrupted):
    run(tmp_path, MESHES[name], number=signal.SIGINT, at=9, **changes)
  done = run(tmp_path, MESHES[name], **changes)
  assert {leaf.dtype for leaf in jax.tree.leaves(done.model)} == {np.dtype("float32")}
  np.testing.assert_allclose(losses(tmp_path), losses(one[0]), rtol=2e-2)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lion", "adafactor", "muon"])
def test_every_optimizer_is_the_same_on_a_mesh_and_goes_on_from_its_checkpoint(tmp_path, kind):
  changes = {"steps": 6, "optimizer": OptimizerConfig(kind=kind, learning_rate=1e-3, warmup_steps=2)}
  run(tmp_path / "one", ONE, **changes)
  with pytest.raises(Interrupted):
    run(tmp_path / "mesh", MESHES["fsdp2 x tp2"], number=signal.SIGINT, at=2, **changes)
  run(tmp_path / "mesh", MESHES["fsdp2 x tp2"], **changes)
  assert losses(tmp_path / "one")[-1] < losses(tmp_path / "one")[0]
  np.testing.assert_allclose(losses(tmp_path / "mesh"), losses(tmp_path / "one"), rtol=0, atol=1e-4)


@optimised
@pytest.mark.parametrize("stops", [(9,), pytest.param(tuple(range(19)), marks=pytest.mark.slow)], ids=["half", "every"])
@pytest.mark.parametrize(
  "name",
  ["fsdp2 x tp2", *(pytest.param(name, marks=pytest.mark.slow) for name in ("dp4", "fsdp4", "fsdp2 x context2"))],
)
def test_restarts_are_bitwise_the_same_run(on, tmp_path, name, stops):
  """20 steps, 10 + 10, and a restart after every one, compared as hex."""
  for step in stops:
    with pytest.raises(Interrupted):
      run(tmp_path, MESHES[name], number=signal.SIGINT, at=step)
  done, (folder, whole) = run(tmp_path, MESHES[name]), on(name)
  assert curve(tmp_path) == curve(folder)
  jax.tree.map(np.testing.assert_array_equal, done.model, whole.model)


def test_a_run_may_go_on_on_another_mesh(one, tmp_path):
  """4 devices, then 1, and 4 again, laid out in another way."""
  for at, mesh in ((4, MESHES["fsdp4"]), (9, ONE)):
    with pytest.raises(Interrupted):
      run(tmp_path, mesh, number=signal.SIGINT, at=at)
  run(tmp_path, MESHES["fsdp2 x tp2"])
  np.testing.assert_allclose(losses(tmp_path), losses(one[0]), rtol=0, atol=1e-5)


def test_unset_the_mesh_takes_all_devices_that_the_rows_divide_among(caplog):
  with caplog.at_level(logging.INFO, logger="jaxchop"):
    mesh = make_mesh(MeshConfig(), CONFIG, rows=6, length=12)
  assert mesh.shape == {"data": 1, "fsdp": 2, "context": 1, "tensor": 1}
  assert "mesh: 2 of 4 devices work: data 1, fsdp 2, context 1, tensor 1" in caplog.messages


@pytest.mark.parametrize(
  ("mesh", "said"),
  [
    (MeshConfig(data=-1, fsdp=-1), "data and fsdp are -1"),
    (MeshConfig(data=0), "mesh.data is 0"),
    (MeshConfig(data=16, fsdp=1), "take 16 devices, there are 4"),
    (MeshConfig(data=3, fsdp=1), "does not divide its 4 rows"),
    (MeshConfig(fsdp=1, tensor=4), "does not divide the model's key/value heads, 2"),
  ],
)
def test_a_mesh_that_does_not_fit_is_refused_by_name(tmp_path, mesh, said):
  with pytest.raises(UsageError, match=said):
    run(tmp_path, mesh)
  assert not list(tmp_path.iterdir())


def test_a_width_that_the_parts_do_not_divide_is_refused(tmp_path):
  model = tiny_model(config=dataclasses.replace(tiny_run.CONFIG, width=14))
  with pytest.raises(UsageError, match=r"mesh\.fsdp is 4, which does not divide the model's width, 14"):
    recover(model, Records(), settings(mesh=MESHES["fsdp4"]), tmp_path)
