"""The prune is a slice of a pytree."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxchop.model.config import LlamaConfig
from jaxchop.model.llama import Llama
from jaxchop.model.rope import rotation
from jaxchop.model.tree import flatten
from jaxchop.prune.surgery import keep_layers

CONFIG = LlamaConfig(
  vocab_size=32, width=16, mlp_width=24, heads=4, kv_heads=2, head_dim=4, norm_eps=1e-5, max_positions=64
)
IDS_BT = jnp.arange(12).reshape(2, 6)


@pytest.fixture
def model():
  return Llama(CONFIG, 4, rngs=nnx.Rngs(0))


def test_a_slice_is_a_model_and_tree_functions_just_work(model):
  model.layers = nnx.List(model.layers[i] for i in (0, 3))
  halved = jax.tree.map(lambda leaf: leaf / 2, model)
  assert jax.jit(lambda m: m(IDS_BT))(halved).shape == (2, 6, 32)


def test_kept_layers_are_renumbered_and_shared_and_the_source_is_untouched(model):
  small, whole = flatten(keep_layers(model, (1, 3))), flatten(model)
  assert small["layers.1.mlp.up.kernel"] is whole["layers.3.mlp.up.kernel"]
  assert "layers.2.mlp.up.kernel" not in small
  assert len(model.layers) == 4


def test_writing_into_the_small_model_leaves_its_source_alone(model):
  before = np.asarray(model.layers[3].mlp.up.kernel[...])
  small = keep_layers(model, (1, 3))
  small.layers[1].mlp.up.kernel[...] = jnp.zeros_like(before)
  np.testing.assert_array_equal(model.layers[3].mlp.up.kernel[...], before)


def test_a_gate_of_zero_equals_removal(model):
  turn = rotation(CONFIG, jnp.arange(6)[None])
  x_BTD = model.embed(IDS_BT)
  for index, layer in enumerate(model.layers):
    x_BTD = layer(x_BTD, turn, gate=0.0 if index in (1, 2) else 1.0)
  np.testing.assert_array_equal(model.logits(x_BTD), keep_layers(model, (0, 3))(IDS_BT, layout="unrolled"))


def test_a_layer_outside_the_model_is_refused(model):
  with pytest.raises(IndexError):
    keep_layers(model, (0, 4))
