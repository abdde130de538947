"""Layers that fade out: at the end they are gone before they are cut, and what they change is seen and penalised."""

import signal
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_loop import curve
from tiny_run import CONFIG, Records, records, settings, tiny_model

from jaxchop.data.batch import Batch, batch_of
from jaxchop.errors import Interrupted
from jaxchop.model.llama import hidden, hidden_and, positions
from jaxchop.model.rope import rotation
from jaxchop.model.tree import flatten
from jaxchop.prune.surgery import keep_layers
from jaxchop.recover.curve import read_curve
from jaxchop.recover.fading import Fading, faded, faded_loss, gate
from jaxchop.recover.loop import recover
from jaxchop.recover.objective import summed_loss
from jaxchop.recover.step import mean_loss_and_gradient
from jaxchop.training import MeshConfig, OptimizerConfig

LAYERS, GOING, KEEP = 4, (1, 2), (0, 3)
STILL = OptimizerConfig(learning_rate=0.0, warmup_steps=0, weight_decay=0.0)


def model(seed: int = 0):
  """A model whose layers change the stream as much as those of one that has learnt something."""
  return jax.tree.map(lambda leaf: 8 * leaf if leaf.ndim == 2 else leaf, tiny_model(LAYERS, seed))


def uneven() -> Batch:
  return Batch(records(3), (np.arange(12) < np.array([[12], [7], [1], [5]])).astype(np.float32))


def run(folder: Path, *, penalty: float = 0.5, number: int = 0, at: int = -1, **changes):
  config, about = settings(**{"steps": 8, **changes}), {"data": "count"}
  return recover(model(), Records(number, at), config, folder, meta=about, fading=Fading(GOING, penalty))


def test_the_gate_falls_evenly_and_the_last_step_is_without_the_layers() -> None:
  np.testing.assert_allclose([gate(jnp.int32(done), 4) for done in range(4)], [0.75, 0.5, 0.25, 0.0])


@pytest.mark.parametrize("share", [1.0, 0.3, 0.0])
def test_a_faded_layer_is_a_gated_block(share: float) -> None:
  ids = jnp.asarray(records(0)[:, :-1])
  whole = model()
  x, turn = whole.embed(ids), rotation(CONFIG, positions(ids))
  for number, layer in enumerate(whole.layers):
    x = layer(x, turn, gate=share if number in GOING else 1.0)
  np.testing.assert_allclose(hidden(faded(whole, GOING, share), ids), x, rtol=1e-5, atol=1e-5)
  if share == 0.0:
    np.testing.assert_allclose(hidden(keep_layers(whole, KEEP), ids), x, rtol=1e-5, atol=1e-5)


def test_the_change_is_that_of_the_layers_that_go() -> None:
  whole, batch, config = model(), uneven(), settings()
  ids = jnp.asarray(batch.ids[:, :-1])
  _, (before, after) = hidden_and(faded(whole, GOING, 0.6), ids, lambda x, y, _: (x, y))
  apart = np.sum(np.square(after - before), -1) / np.sum(np.square(before), -1)
  wanted = np.mean([np.sum(apart[layer] * batch.weight) for layer in GOING])
  total, told = faded_loss(whole, batch, Fading(GOING, 0.5), 0.6, config)
  plain = summed_loss(faded(whole, GOING, 0.6), batch)
  np.testing.assert_allclose([told["change"], told["loss"]], [wanted, plain], rtol=1e-5)
  np.testing.assert_allclose(total, plain + 0.5 * wanted, rtol=1e-5)


@pytest.mark.parametrize("changes", [{"layout": "unrolled", "remat": "none"}, {"remat": "full"}], ids=str)
def test_every_way_to_compute_it_gives_the_same(changes) -> None:
  def gradient(config, accumulate):
    loss = lambda m, b: faded_loss(m, b, Fading(GOING, 0.5), jnp.float32(0.4), config)  # noqa: E731
    return jax.jit(lambda m: mean_loss_and_gradient(loss, m, uneven(), accumulate, has_aux=True))(model())

  want, wanted = gradient(settings(), 1)
  found, grads = gradient(settings(**changes), 2)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found, want)
  for name, grad in flatten(grads).items():
    np.testing.assert_allclose(grad, flatten(wanted)[name], rtol=1e-3, atol=1e-5, err_msg=name)


def test_the_last_step_is_one_of_the_cut_model(tmp_path: Path) -> None:
  run(tmp_path, steps=4, optimizer=STILL)
  lines, whole = read_curve(tmp_path / "metrics.jsonl"), model()
  for number, line in enumerate(lines):
    batch = batch_of(records(number))
    less = faded(whole, GOING, 1 - (number + 1) / 4) if number < 3 else keep_layers(whole, KEEP)
    assert line["loss"] == pytest.approx(float(summed_loss(less, batch) / batch.weight.sum()), abs=1e-5)
  assert lines[-1]["change"] == 0 < lines[0]["change"]


@pytest.mark.slow
def test_a_penalty_makes_the_layers_change_less_and_cutting_costs_less_than_at_once(tmp_path: Path) -> None:
  loose, tight = (run(tmp_path / str(p), penalty=p, steps=40).model for p in (0.0, 2.0))
  changes = [sum(line["change"] for line in read_curve(tmp_path / p / "metrics.jsonl")) for p in ("0.0", "2.0")]
  assert changes[1] < changes[0]
  batch = batch_of(records(1000))
  at_once, *after = (float(summed_loss(keep_layers(m, KEEP), batch)) for m in (model(), loose, tight))
  assert max(after) < 0.8 * at_once


@pytest.mark.slow
@pytest.mark.optimised
def test_a_restart_is_the_same_run(tmp_path: Path) -> None:
  whole = run(tmp_path / "whole")
  with pytest.raises(Interrupted):
    run(tmp_path / "cut", number=signal.SIGINT, at=5)
  again = run(tmp_path / "cut")
  assert curve(tmp_path / "cut") == curve(tmp_path / "whole")
  jax.tree.map(np.testing.assert_array_equal, again.model, whole.model)


@pytest.mark.slow
def test_on_several_devices_it_is_the_run_of_one(tmp_path: Path) -> None:
  found = []
  for name, mesh in (("one", MeshConfig(fsdp=1)), ("several", MeshConfig(fsdp=2, context=2))):
    run(tmp_path / name, mesh=mesh, steps=4)
    lines = read_curve(tmp_path / name / "metrics.jsonl")
    found.append([[line[key] for key in ("loss", "change")] for line in lines])
  np.testing.assert_allclose(*found, rtol=0, atol=1e-5)
