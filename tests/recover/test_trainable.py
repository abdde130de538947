"""What trains is what the settings name; everything else stays as it is, to the last bit, and costs nothing."""

import dataclasses
import shutil
import signal
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from test_loop import curve
from tiny_run import CONFIG, Records, records, settings, tiny_model

from jaxchop.data.batch import batch_of
from jaxchop.errors import Interrupted, JaxchopError, UsageError
from jaxchop.model.flops import forward_flops
from jaxchop.model.llama import Llama
from jaxchop.model.tree import abstract, flatten
from jaxchop.recover.checkpoint import load_weights
from jaxchop.recover.frozen import recovered_parts
from jaxchop.recover.loop import recover
from jaxchop.recover.objective import summed_loss
from jaxchop.recover.outcome import Recovered
from jaxchop.recover.step import init_optimizer, make_step, mean_loss_and_gradient
from jaxchop.recover.trainable import Way, untied, way_of
from jaxchop.training import MeshConfig, PartialConfig, RecoverConfig

LAYERS = 3
KERNELS = {f"attention.{k}.kernel" for k in "qkvo"} | {f"mlp.{k}.kernel" for k in ("gate", "up", "down")}
BLOCK = {*KERNELS, "attention_norm.scale", "mlp_norm.scale"}
NO_MORE: dict[str, Any] = {"last": 0, "norm": False, "head": False}


def partly(**chosen: Any) -> RecoverConfig:
  return settings(trainable="partial", partial=PartialConfig(**chosen))


def way(**chosen: Any) -> Way:
  return way_of(partly(**chosen), CONFIG, LAYERS)


def of(layer: int) -> set[str]:
  return {f"layers.{layer}.{name}" for name in BLOCK}


def run(folder: Path, config: RecoverConfig, *, number: int = 0, at: int = -1, model: Llama | None = None) -> Recovered:
  return recover(model or tiny_model(), Records(number, at), config, folder, meta={"data": "count"})


def test_by_default_every_parameter_trains() -> None:
  assert way_of(settings(), CONFIG, LAYERS).names == set(flatten(tiny_model()))


def test_partial_is_the_norm_the_head_and_the_last_layers() -> None:
  assert way(last=2).names == {"norm.scale", "head"} | of(1) | of(2)
  assert way(last=1, head=False, norm=False).names == of(2)
  assert way(layers="0,2:3", norm=False).names == {"head"} | of(0) | of(2)


def test_regular_expressions_name_parameters_as_a_whole() -> None:
  assert way(**NO_MORE, match=(r"layers\.\d\.attention\.q\.kernel",)).names == {
    f"layers.{layer}.attention.q.kernel" for layer in range(LAYERS)
  }
  assert way(**NO_MORE, match=("embedding", r"layers\.1\..*")).names == {"embedding"} | of(1)


@pytest.mark.parametrize(
  ("chosen", "words"),
  [
    (NO_MORE, r"recover\.partial: nothing is left to train"),
    ({"last": 4}, r"recover\.partial\.last is 4; the model has 3 layers"),
    ({"layers": "2:9"}, r"'2:9' is empty or outside 0:3"),
    ({"match": ("mlp",)}, r"'mlp' fits no whole name of a parameter; there are embedding, head, norm\.scale"),
    ({"match": ("(",)}, r"'\(' is no regular expression"),
  ],
)
def test_what_the_model_has_not_is_refused(chosen: dict[str, Any], words: str) -> None:
  with pytest.raises(UsageError, match=words):
    way(**chosen)


def test_a_head_of_its_own_gives_the_same_logits() -> None:
  model, ids = tiny_model(), records(0)
  apart = untied(model)
  assert apart.config == dataclasses.replace(CONFIG, tied=False) and model.head is None
  # The products are the same, in another order: a tied head's has the vocabulary first.
  np.testing.assert_allclose(model(ids), apart(ids), rtol=0, atol=1e-6)
  assert untied(apart) is apart


@pytest.mark.parametrize("layout", ["scan", "unrolled"])
@pytest.mark.parametrize(
  "chosen", [{"last": 1}, {**NO_MORE, "layers": "0,2"}, {**NO_MORE, "match": (r".*\.q\.kernel",)}]
)
def test_gradients_are_those_of_training_everything(layout: str, chosen: dict[str, Any]) -> None:
  some, batch = way(**chosen), batch_of(records(0))
  model = some.prepare(tiny_model())
  trained, frozen = some.split(model)
  loss_of = partial(summed_loss, layout=layout)
  everything = jax.jit(lambda m: mean_loss_and_gradient(loss_of, m, batch, 1))(model)

  def joined(trained, batch):
    return loss_of(some.join(trained, frozen), batch)

  loss, grads = jax.jit(lambda t: mean_loss_and_gradient(joined, t, batch, 2))(trained)
  np.testing.assert_allclose(loss, everything[0], rtol=2e-6)
  assert set(grads) == some.names
  for name, grad in grads.items():
    np.testing.assert_allclose(grad, flatten(everything[1])[name], rtol=1e-4, atol=1e-7, err_msg=name)


@pytest.mark.parametrize("layout", ["scan", "unrolled"])
def test_what_does_not_train_stays_to_the_last_bit(tmp_path: Path, layout: str) -> None:
  config, model = dataclasses.replace(partly(last=1), layout=layout), tiny_model()
  done = run(tmp_path, config, model=model)
  before, after = flatten(untied(model)), flatten(done.model)
  assert before.keys() == after.keys() and not done.model.config.tied
  for name, weights in after.items():
    same = np.array_equal(weights, before[name])
    assert same == (name not in way(last=1).names), name
  assert done.last_loss is not None and done.first_loss is not None and done.last_loss < done.first_loss


def test_only_what_trains_is_in_a_checkpoint_and_in_the_optimizer(tmp_path: Path) -> None:
  done = run(tmp_path, partly(last=1))
  assert set(load_weights(tmp_path / "checkpoints")[0]) == way(last=1).names
  assert set(load_weights(tmp_path / "frozen")[0]) == set(flatten(done.model)) - way(last=1).names
  trained, _ = way(last=1).split(untied(tiny_model()))
  state = flatten(init_optimizer(partly(last=1), trained))
  assert {name.split("mu.")[-1] for name in state if "mu." in name} == way(last=1).names
  found = recovered_parts(tmp_path / "checkpoints", CONFIG, LAYERS)
  assert found.meta["step"] == 20 and not found.model.config.tied
  jax.tree.map(np.testing.assert_array_equal, found.model, done.model)


def test_a_restart_is_the_same_run(tmp_path: Path) -> None:
  config = partly(last=1)
  whole = run(tmp_path / "whole", config)
  with pytest.raises(Interrupted):
    run(tmp_path / "cut", config, number=signal.SIGINT, at=7)
  # What does not train is the run's own from its beginning: a model that came out otherwise changes nothing.
  again = run(tmp_path / "cut", config, model=tiny_model(seed=1))
  assert curve(tmp_path / "cut") == curve(tmp_path / "whole")
  jax.tree.map(np.testing.assert_array_equal, again.model, whole.model)


def test_a_restart_runs_the_very_same_program(tmp_path: Path) -> None:
  def programs() -> set[str]:
    return {path.name for path in Path(jax.config.jax_compilation_cache_dir).glob("jit_step-*-cache")}

  config = dataclasses.replace(partly(last=1), z_loss=1e-5)
  with pytest.raises(Interrupted):
    run(tmp_path, config, number=signal.SIGINT, at=7)
  first = programs()
  run(tmp_path, config)
  assert first and programs() == first


def test_a_restart_without_its_frozen_weights_needs_the_very_same_model(tmp_path: Path) -> None:
  config = partly(last=1)
  with pytest.raises(Interrupted):
    run(tmp_path, config, number=signal.SIGINT, at=7)
  shutil.rmtree(tmp_path / "frozen")
  with pytest.raises(JaxchopError, match=r"frozen: the weights that do not train are not whole.*another folder"):
    run(tmp_path, config, model=tiny_model(seed=1))
  run(tmp_path, config)
  assert (tmp_path / "frozen" / "00000000").is_dir()


def test_another_choice_is_another_run(tmp_path: Path) -> None:
  with pytest.raises(Interrupted):
    run(tmp_path, partly(last=1), number=signal.SIGINT, at=7)
  with pytest.raises(JaxchopError, match=r"layers\.1|recover\.partial"):
    run(tmp_path, partly(last=2))


@pytest.mark.parametrize("mesh", [MeshConfig(fsdp=2, tensor=2), MeshConfig(data=2, fsdp=2)])
def test_on_several_devices_it_is_the_run_of_one(tmp_path: Path, mesh: MeshConfig) -> None:
  one, several = (dataclasses.replace(partly(last=1), steps=4, mesh=m) for m in (MeshConfig(fsdp=1), mesh))
  losses = []
  for name, config in (("one", one), ("several", several)):
    run(tmp_path / name, config)
    losses.append([loss for _, loss, *_ in curve(tmp_path / name)])
  losses = [[float.fromhex(loss) if isinstance(loss, str) else loss for loss in run] for run in losses]
  np.testing.assert_allclose(*losses, rtol=0, atol=1e-5)


SHAPE = dataclasses.replace(CONFIG, vocab_size=512, width=128, mlp_width=384, head_dim=32, tied=False)
LENGTH = 128


@pytest.mark.parametrize(
  "chosen",
  [{"last": 1}, {"last": 0}, {**NO_MORE, "layers": "1"}, {**NO_MORE, "match": (r"layers\.[01]\.mlp\.down\.kernel",)}],
)
def test_a_step_computes_nothing_below_the_lowest_trained_layer(chosen: dict[str, Any]) -> None:
  config = dataclasses.replace(partly(**chosen), seq_len=LENGTH, layout="unrolled", remat="none")
  some = way_of(config, SHAPE, LAYERS)
  trained, frozen = some.split(abstract(SHAPE, LAYERS))
  batch = batch_of(np.zeros((2, LENGTH + 1), np.int32))
  state = jax.eval_shape(partial(init_optimizer, config), trained)
  step = jax.jit(make_step(config, some.join)).lower(trained, state, batch, frozen=frozen)
  found = step.cost_analysis()["flops"] / (2 * LENGTH)
  flops = some.flops(LENGTH)
  forward = forward_flops(SHAPE, LAYERS, LENGTH).attention
  # A block of queries sees all keys, and computes its scores once more for its backward pass.
  attention = 2 * LENGTH / (LENGTH + 1) * (flops.attention + (flops.attention - forward) / 2)
  assert found == pytest.approx(flops._replace(attention=attention).total, rel=0.08)


def test_the_operations_of_training_everything_are_three_forward_passes() -> None:
  some = way_of(settings(), CONFIG, LAYERS)
  assert some.flops(LENGTH).total == pytest.approx(forward_flops(CONFIG, LAYERS, LENGTH).times(3).total)
