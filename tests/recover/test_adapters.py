"""Adapters: they begin as the model, train alone, and come out as stock weights that do the same."""

import dataclasses
import signal
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_loop import curve
from tiny_run import CONFIG, Records, records, settings, tiny_model

from jaxchop.data.batch import batch_of
from jaxchop.errors import Interrupted, UsageError
from jaxchop.model.adapter import linears, noisy
from jaxchop.model.flops import forward_flops
from jaxchop.model.tree import abstract, flatten
from jaxchop.recover.adapters import row_noise
from jaxchop.recover.checkpoint import load_weights
from jaxchop.recover.loop import recover
from jaxchop.recover.objective import summed_loss
from jaxchop.recover.outcome import Recovered
from jaxchop.recover.step import init_optimizer, make_step, mean_loss_and_gradient
from jaxchop.recover.trainable import way_of
from jaxchop.training import AdapterConfig, MeshConfig, RecoverConfig

LAYERS = 3
# Wide enough to be cut into blocks of 64.
SHAPE = dataclasses.replace(CONFIG, width=64, mlp_width=128, head_dim=16)
KINDS = ["lora", "dora", "qlora"]


def adapting(kind: str, dropout: float = 0.0, **changes: Any) -> RecoverConfig:
  return settings(trainable=kind, adapter=AdapterConfig(rank=4, dropout=dropout), **changes)


def parts(config: RecoverConfig, seed: int = 0):
  way = way_of(config, SHAPE, LAYERS)
  trained, frozen = way.split(way.prepare(tiny_model(config=SHAPE)))
  draw = np.random.default_rng(seed)
  return way, {name: leaf + seed * draw.normal(0, 0.1, leaf.shape) for name, leaf in trained.items()}, frozen


def run(folder: Path, config: RecoverConfig, *, number: int = 0, at: int = -1) -> Recovered:
  return recover(tiny_model(config=SHAPE), Records(number, at), config, folder, meta={"data": "count"})


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_begins_as_the_model_and_is_exported_as_what_it_computes(kind: str) -> None:
  ids, whole = records(0), tiny_model(config=SHAPE)
  way, trained, frozen = parts(adapting(kind))
  begun = way.join(trained, frozen)(ids)
  np.testing.assert_allclose(begun, whole(ids), atol=1e-6 if kind != "qlora" else 0.1 * np.abs(whole(ids)).max())
  way, trained, frozen = parts(adapting(kind), seed=1)
  found, stock = way.join(trained, frozen)(ids), way.stock(trained, frozen)
  assert stock.config == SHAPE and jax.tree.structure(stock) == jax.tree.structure(abstract(SHAPE, LAYERS))
  np.testing.assert_allclose(stock(ids), found, atol=1e-5 * np.abs(found).max())
  assert np.abs(found - begun).max() > 0.1 * np.abs(begun).max()


@pytest.mark.parametrize("kind", ["qlora", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("lora", "dora"))])
def test_adapters_train_and_nothing_else_does(tmp_path: Path, kind: str) -> None:
  config = adapting(kind, dropout=0.1)
  done = run(tmp_path, config)
  leaves = {"a", "b", "magnitude"} if kind == "dora" else {"a", "b"}
  trained = load_weights(tmp_path / "checkpoints")[0]
  assert {name.rpartition(".")[2] for name in trained} == leaves and len(trained) == LAYERS * 7 * len(leaves)
  frozen = parts(config)[2]
  written = load_weights(tmp_path / "frozen")[0]
  assert written.keys() == frozen.keys()
  jax.tree.map(np.testing.assert_array_equal, written, dict(frozen))
  np.testing.assert_array_equal(done.model.embedding[...], tiny_model(config=SHAPE).embedding[...])
  assert done.last_loss is not None and done.first_loss is not None and done.last_loss < 0.95 * done.first_loss


def test_only_targets_get_an_adapter() -> None:
  config = settings(trainable="lora", adapter=AdapterConfig(targets=("q", "down")))
  names = way_of(config, CONFIG, 1).names
  assert names == {f"layers.0.{place}.{leaf}" for place in ("attention.q", "mlp.down") for leaf in "ab"}


def test_four_bits_take_whole_blocks() -> None:
  with pytest.raises(UsageError, match=r"qlora cuts inputs into blocks of 64, layers\.0\.attention\.[qkvo] has 16"):
    way_of(settings(trainable="qlora"), CONFIG, LAYERS)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dora", "lora", "qlora"])
def test_every_layout_and_cut_of_the_batch_leaves_out_the_same(kind: str) -> None:
  config = adapting(kind, dropout=0.3)
  way, trained, frozen = parts(config, seed=1)
  batch = batch_of(records(0))
  batch = batch._replace(noise=row_noise(0, jnp.int32(5), jnp.asarray(batch.ids)))

  def loss(batch, layout="scan", accumulate=1, remat="dots"):
    of = lambda trained, batch: summed_loss(way.join(trained, frozen), batch, layout=layout, remat=remat)  # noqa: E731
    return jax.jit(lambda t: mean_loss_and_gradient(of, t, batch, accumulate))(trained)

  want, grads = loss(batch)
  for changes in ({"layout": "unrolled", "remat": "none"}, {"accumulate": 4, "remat": "full"}):
    found, others = loss(batch, **changes)
    np.testing.assert_allclose(found, want, rtol=2e-6)
    for name, grad in others.items():
      np.testing.assert_allclose(grad, grads[name], rtol=1e-3, atol=1e-5 * np.abs(grads[name]).max(), err_msg=name)
  calm = loss(batch._replace(noise=None))[0]
  other = loss(batch._replace(noise=row_noise(0, jnp.int32(6), jnp.asarray(batch.ids))))[0]
  assert len({float(want), float(calm), float(other)}) == 3


def test_dropout_leaves_out_its_share_and_keeps_the_mean() -> None:
  config = adapting("lora", dropout=0.25)
  way, trained, frozen = parts(config)
  ids = jnp.zeros((64, 2), jnp.int32)
  linear = dict(linears(noisy(way.join(trained, frozen), row_noise(0, jnp.int32(0), ids))))["layers.1.attention.q"]
  thin = np.asarray(linear._thinned(jnp.ones((64, 40, 64))))
  assert set(np.unique(thin)) == {0.0, np.float32(1 / 0.75)}
  assert thin.mean() == pytest.approx(1, abs=0.01)
  assert np.any(thin[0] != thin[1])


@pytest.mark.slow
@pytest.mark.parametrize("kind", [pytest.param("dora", marks=pytest.mark.slow), "qlora"])
def test_a_restart_is_the_same_run(tmp_path: Path, kind: str) -> None:
  config = adapting(kind, dropout=0.1)
  whole = run(tmp_path / "whole", config)
  with pytest.raises(Interrupted):
    run(tmp_path / "cut", config, number=signal.SIGINT, at=7)
  again = run(tmp_path / "cut", config)
  assert curve(tmp_path / "cut") == curve(tmp_path / "whole")
  jax.tree.map(np.testing.assert_array_equal, again.model, whole.model)


CUT, SPREAD = MeshConfig(fsdp=2, tensor=2), MeshConfig(data=2, fsdp=1, context=2)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [CUT, SPREAD], ids=["cut", "spread"])
@pytest.mark.parametrize("kind", KINDS)
def test_on_several_devices_it_is_the_run_of_one(tmp_path: Path, kind: str, mesh: MeshConfig) -> None:
  # Positions of a sequence that is spread lie in another order, so that dropout would take others.
  dropout = 0.0 if mesh.context > 1 else 0.1
  losses = []
  for name, devices in (("one", MeshConfig(fsdp=1)), ("several", mesh)):
    run(tmp_path / name, adapting(kind, dropout=dropout, steps=4, mesh=devices))
    losses.append([float.fromhex(loss) for _, loss, *_ in curve(tmp_path / name)])
  np.testing.assert_allclose(*losses, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("kind", "dropout", "passes"), [("lora", 0.1, 2), ("qlora", 0.0, 2), ("dora", 0.1, 4)])
def test_no_gradient_of_a_kernel_is_computed(kind: str, dropout: float, passes: int) -> None:
  """Of three forward passes the kernels' gradients are one; dora multiplies what dropout leaves with them, too."""
  shape, length = dataclasses.replace(SHAPE, vocab_size=512, width=128, mlp_width=384, head_dim=32), 128
  config = adapting(kind, dropout, seq_len=length, layout="unrolled", remat="none")
  way = way_of(config, shape, LAYERS)
  flat = jax.eval_shape(lambda m: way.split(way.prepare(m)), abstract(shape, LAYERS))
  batch = batch_of(np.zeros((2, length + 1), np.int32))
  state = jax.eval_shape(partial(init_optimizer, config), flat[0])
  step = jax.jit(make_step(config, way.join)).lower(flat[0], state, batch, frozen=flat[1])
  found = step.cost_analysis()["flops"] / (2 * length)
  flops, forward = way.flops(length), forward_flops(shape, LAYERS, length)
  # A block of queries sees all keys, and computes its scores once more for its backward pass.
  attention = 2 * length / (length + 1) * (flops.attention + (flops.attention - forward.attention) / 2)
  assert found == pytest.approx(flops._replace(attention=attention).total, rel=0.4 if kind == "qlora" else 0.1)
  assert (passes - 0.5) * forward.kernels < flops.kernels < (passes + 0.3) * forward.kernels


def test_flatten_names_adapters_beside_their_kernels() -> None:
  way, trained, frozen = parts(adapting("qlora"))
  assert "layers.0.mlp.up.kernel.codes" in frozen and "layers.0.mlp.up.a" in trained
  assert not set(flatten(way.base(frozen))) & set(trained)
