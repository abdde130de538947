"""LoRA and DoRA beside peft's on transformers' Llama: logits, loss, gradients, merged weights, and the saved folder."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")

from test_training_step import DRAWN, batches, torch_loss  # noqa: E402
from torch_llama import pair, tokens  # noqa: E402

from jaxchop.hub.peft import write_adapter  # noqa: E402
from jaxchop.model.tree import flatten  # noqa: E402
from jaxchop.recover.objective import summed_loss  # noqa: E402
from jaxchop.recover.step import mean_loss_and_gradient  # noqa: E402
from jaxchop.recover.trainable import way_of  # noqa: E402
from jaxchop.training import AdapterConfig, RecoverConfig  # noqa: E402

# peft asks transformers for what transformers has renamed.
RENAMED = "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings(RENAMED)]
WAYS = ["lora", "dora"]
ADAPTER = AdapterConfig(rank=3, alpha=7.0, dropout=0.0, targets=("q", "v", "o", "up", "down"))


class Both:
  """A model of transformers with the adapter folder that we wrote for ours, as peft loads it; and ours."""

  def __init__(self, kind: str, folder: Path):
    config = RecoverConfig(trainable=kind, adapter=ADAPTER)
    self.theirs, model = pair(DRAWN)
    self.way = way_of(config, DRAWN.ours, DRAWN.layers)
    self.trained, self.frozen = self.way.split(self.way.prepare(model))
    # As after some training: no leaf is what it began as.
    draw = np.random.default_rng(3)
    self.trained = {name: leaf + draw.normal(0, 0.1, leaf.shape) for name, leaf in self.trained.items()}
    write_adapter(self.trained, config.adapter, folder / "adapter", base="base", provenance={})
    self.wrapped = peft.PeftModel.from_pretrained(self.theirs, folder / "adapter", is_trainable=True)

  def ours(self):
    return self.way.join(self.trained, self.frozen)


@pytest.fixture(params=WAYS)
def both(request: pytest.FixtureRequest, tmp_path: Path) -> Both:
  return Both(request.param, tmp_path)


def test_a_saved_adapter_gives_the_same_logits_in_peft(both: Both) -> None:
  ids = tokens(DRAWN, 2, 16)
  want = both.wrapped(torch.from_numpy(ids)).logits.detach().numpy()
  bare = both.way.base(both.frozen)(ids)
  np.testing.assert_allclose(both.ours()(ids), want, atol=2e-4 * np.abs(want).max())
  assert np.abs(bare - want).max() > 0.05 * np.abs(want).max()


def test_loss_and_gradients_are_those_of_peft(both: Both) -> None:
  batch = batches()[0]
  loss = lambda trained, batch: summed_loss(both.way.join(trained, both.frozen), batch)  # noqa: E731
  found, grads = jax.jit(lambda t: mean_loss_and_gradient(loss, t, batch, 1))(both.trained)
  want = torch_loss(both.wrapped, batch)
  want.backward()
  np.testing.assert_allclose(found, want.item(), rtol=1e-5)
  theirs = {name: p.grad for name, p in both.wrapped.named_parameters() if p.grad is not None}
  assert len(theirs) == len(grads)
  for name, grad in theirs.items():
    _, _, _, _, layer, part, module, leaf, *_ = name.split(".")
    own = {"lora_A": "a", "lora_B": "b", "lora_magnitude_vector": "magnitude"}[leaf]
    kind = {"self_attn": "attention", "mlp": "mlp"}[part]
    ours = np.asarray(grads[f"layers.{layer}.{kind}.{module.removesuffix('_proj')}.{own}"])
    np.testing.assert_allclose(ours.T, grad.numpy(), atol=1e-4 * float(grad.abs().max()), err_msg=name)


def test_the_merged_model_is_that_of_peft_and_of_the_adapters(both: Both) -> None:
  ids = tokens(DRAWN, 2, 16)
  merged = both.way.stock(both.trained, both.frozen)
  np.testing.assert_allclose(merged(ids), both.ours()(ids), atol=1e-5 * np.abs(both.ours()(ids)).max())
  theirs = both.wrapped.merge_and_unload().state_dict()
  for name, weights in flatten(merged).items():
    if name.endswith("q.kernel") or name.endswith("down.kernel"):
      layer, kind, part = name.split(".")[1:4]
      hf = {"attention": "self_attn", "mlp": "mlp"}[kind]
      np.testing.assert_allclose(
        weights.T, theirs[f"model.layers.{layer}.{hf}.{part}_proj.weight"].numpy(), atol=1e-5, err_msg=name
      )


def test_an_adapter_begins_as_peft_begins(tmp_path: Path) -> None:
  theirs, model = pair(DRAWN)
  settings = peft.LoraConfig(r=3, target_modules=["q_proj"], use_dora=True)
  begun = dict(peft.get_peft_model(theirs, settings).named_parameters())
  adapter = dataclasses.replace(ADAPTER, targets=("q",))
  way = way_of(RecoverConfig(trainable="dora", adapter=adapter), DRAWN.ours, DRAWN.layers)
  trained, _ = way.split(way.prepare(model))
  for layer in range(DRAWN.layers):
    hf, own = f"base_model.model.model.layers.{layer}.self_attn.q_proj", f"layers.{layer}.attention.q"
    a, b, magnitude = (
      begun[f"{hf}.{leaf}"].detach().numpy()
      for leaf in ("lora_A.default.weight", "lora_B.default.weight", "lora_magnitude_vector.default.weight")
    )
    assert not b.any() and not np.any(trained[f"{own}.b"])
    np.testing.assert_allclose(trained[f"{own}.magnitude"], magnitude, rtol=1e-5)
    for drawn in (a, np.asarray(trained[f"{own}.a"])):
      assert np.abs(drawn).max() <= 24**-0.5 and np.abs(drawn).mean() == pytest.approx(24**-0.5 / 2, rel=0.3)
