"""A linear map stands in for layers: the best one there is, inside weights that were there already."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxchop.errors import JaxchopError, UsageError
from jaxchop.model.config import LlamaConfig
from jaxchop.model.llama import positions
from jaxchop.model.rope import rotation
from jaxchop.model.tree import abstract, flatten
from jaxchop.prune.linear_map import linear_map
from jaxchop.prune.surgery import keep_layers

SIZES = {"vocab_size": 32, "width": 16, "mlp_width": 24, "heads": 4, "kv_heads": 2, "head_dim": 4, "max_positions": 64}
CONFIG = LlamaConfig(**SIZES, norm_eps=1e-5, mlp_bias=True)
IDS_NT = np.random.default_rng(0).integers(32, size=(15, 6), dtype=np.int32)
MASK_NT = np.arange(6) < np.random.default_rng(1).integers(1, 7, (15, 1))
run = jax.jit(lambda block, x_BTD, turn: block(x_BTD, turn))


def random_model(config, layers, scale):
  rng = np.random.default_rng(1)
  like = abstract(config, layers)
  return jax.tree.map(
    lambda leaf: jnp.asarray(rng.normal(*((1.0, 0.1) if leaf.ndim == 1 else (0.0, scale)), leaf.shape), jnp.float32),
    like,
  )


@pytest.fixture(scope="module")
def model():
  return random_model(CONFIG, 5, 0.15)


def states(model, layers, ids_NT=IDS_NT):
  """Returns the stream x_RD of the real tokens after `layers`, in float64."""
  ids_NT = jnp.asarray(ids_NT)
  x_NTD, turn = model.embed(ids_NT), rotation(model.config, positions(ids_NT))
  for layer in layers:
    x_NTD = run(layer, x_NTD, turn)
  return np.asarray(x_NTD, np.float64)[MASK_NT]


def without_mlp(layer):
  """Returns the layer with its MLP silenced, so that what it leaves is the attention residual."""
  still = jax.tree.map(lambda leaf: leaf, layer)
  for leaf in (still.mlp.down.kernel, still.mlp.down.bias):
    leaf[...] = jnp.zeros_like(leaf[...])
  return still


def test_the_map_is_the_least_squares_solution_folded_into_kernel_and_bias(model):
  found = linear_map(model, IDS_NT, MASK_NT, 2, 4, ridge=0.0, batch_size=4)
  residual = states(model, [model.layers[0], without_mlp(model.layers[1])])
  mlp = states(model, model.layers[:2]) - residual
  target = states(model, model.layers[:4]) - residual
  best, *_ = np.linalg.lstsq(mlp, target, rcond=None)
  old, new = model.layers[1].mlp.down, found.model.layers[1].mlp.down
  np.testing.assert_allclose(new.kernel[...], np.asarray(old.kernel[...]) @ best, atol=2e-3)
  np.testing.assert_allclose(new.bias[...], np.asarray(old.bias[...]) @ best, atol=2e-3)
  missed = ((mlp @ best - target) ** 2).sum() / ((mlp - target) ** 2).sum()
  assert found.missed == pytest.approx(missed, rel=1e-4)
  assert 0 < missed < 0.9
  # What the map misses is what the folded model misses.
  left = states(found.model, found.model.layers[:2]) - states(model, model.layers[:4])
  assert (left**2).sum() / ((mlp - target) ** 2).sum() == pytest.approx(missed, rel=1e-3)


def test_only_the_carrier_changes_and_the_run_is_gone(model):
  found = linear_map(model, IDS_NT, MASK_NT, 2, 4)
  assert found.keep == (0, 1, 4)
  before, after = flatten(keep_layers(model, found.keep)), flatten(found.model)
  changed = {name for name, leaf in after.items() if leaf is not before[name]}
  assert changed == {"layers.1.mlp.down.kernel", "layers.1.mlp.down.bias"}


def linear_model():
  """One-token sentences through a layer whose effect is linear in the MLP output before it.

  An eps far above any mean square makes each norm a division by its root, which the scale undoes. The MLP of layer 1
  alone writes the upper half of the stream, and all before it the lower; layer 2 reads only the upper half, has no MLP,
  and its attention over one token is its values.
  """
  model = random_model(LlamaConfig(**SIZES, norm_eps=1e12), 4, 0.5)
  for layer in model.layers:
    for norm in (layer.attention_norm, layer.mlp_norm):
      norm.scale[...] = jnp.full(16, 1e6)
  model.norm.scale[...] = jnp.full(16, 1e6)
  lower = np.arange(16) < 8
  first, carrier, linear = model.layers[:3]
  for below in (model.embedding, first.attention.o.kernel, first.mlp.down.kernel, carrier.attention.o.kernel):
    below[...] = jnp.where(lower, below[...], 0.0)
  carrier.mlp.down.kernel[...] = jnp.where(lower, 0.0, carrier.mlp.down.kernel[...])
  linear.attention.v.kernel[...] = jnp.where(lower[:, None], 0.0, linear.attention.v.kernel[...])
  linear.mlp.down.kernel[...] = jnp.zeros((24, 16))
  return model


def test_a_run_that_is_exactly_linear_is_recovered():
  model, ids_NT = linear_model(), np.arange(32, dtype=np.int32)[:, None]
  found = linear_map(model, ids_NT, np.ones((32, 1), bool), 2, 3)
  read, write = (np.asarray(part.kernel[...]) for part in (model.layers[2].attention.v, model.layers[2].attention.o))
  # Two query heads share each of the two value heads.
  expected_DE = np.eye(16) + np.repeat(read.reshape(16, 2, 4), 2, axis=1).reshape(16, 16) @ write
  kernel_FD = np.asarray(model.layers[1].mlp.down.kernel[...])
  np.testing.assert_allclose(found.model.layers[1].mlp.down.kernel[...], kernel_FD @ expected_DE, atol=1e-3)
  assert abs(expected_DE - np.eye(16)).max() > 0.5
  assert found.missed < 1e-6


def test_layers_that_add_nothing_leave_the_weights_as_they_are(model):
  still = keep_layers(model, range(5))
  for layer in still.layers[2:4]:
    layer.attention.o.kernel[...] = jnp.zeros_like(layer.attention.o.kernel[...])
    layer.mlp.down.kernel[...] = jnp.zeros_like(layer.mlp.down.kernel[...])
    layer.mlp.down.bias[...] = jnp.zeros_like(layer.mlp.down.bias[...])
  found = linear_map(still, IDS_NT, MASK_NT, 2, 4)
  np.testing.assert_array_equal(found.model.layers[1].mlp.down.kernel[...], model.layers[1].mlp.down.kernel[...])
  assert found.missed == 0


def test_a_strong_ridge_is_plain_dropping(model):
  found = linear_map(model, IDS_NT, MASK_NT, 2, 4, ridge=1e9)
  np.testing.assert_allclose(
    found.model.layers[1].mlp.down.kernel[...], model.layers[1].mlp.down.kernel[...], atol=1e-6
  )
  assert found.missed == pytest.approx(1, abs=1e-5)


def test_batches_and_what_stands_in_the_padding_change_nothing(model):
  other = np.where(MASK_NT, IDS_NT, 31 - IDS_NT).astype(np.int32)
  one = linear_map(model, IDS_NT, MASK_NT, 2, 4, batch_size=4)
  two = linear_map(model, other, MASK_NT, 2, 4, batch_size=15)
  assert (other != IDS_NT).any()
  assert one.missed == pytest.approx(two.missed, rel=1e-5)
  np.testing.assert_allclose(
    one.model.layers[1].mlp.down.kernel[...], two.model.layers[1].mlp.down.kernel[...], atol=1e-3
  )


def test_a_run_that_begins_with_the_first_layer_is_refused_with_what_to_do(model):
  with pytest.raises(UsageError, match=r"linear_map.start is 0.*start at 1"):
    linear_map(model, IDS_NT, MASK_NT, 0, 2)


@pytest.mark.parametrize(("start", "end"), [(-1, 2), (2, 2), (3, 2), (4, 6)])
def test_a_run_that_is_none_is_refused(model, start, end):
  with pytest.raises(UsageError, match=f"start {start} and end {end}"):
    linear_map(model, IDS_NT, MASK_NT, start, end)


def test_sentences_that_leave_the_map_open_are_refused_without_a_ridge(model):
  silent = keep_layers(model, range(5))
  for leaf in (silent.layers[1].mlp.down.kernel, silent.layers[1].mlp.down.bias):
    leaf[...] = jnp.zeros_like(leaf[...])
  with pytest.raises(JaxchopError, match=r"before layer 2 .*merging.ridge"):
    linear_map(silent, IDS_NT, MASK_NT, 2, 4, ridge=0.0)
  with pytest.raises(UsageError, match="ridge is -1"):
    linear_map(silent, IDS_NT, MASK_NT, 2, 4, ridge=-1.0)


def test_a_broken_model_is_refused(model):
  broken = keep_layers(model, range(5))
  broken.layers[2].mlp.up.kernel[...] = jnp.full_like(broken.layers[2].mlp.up.kernel[...], jnp.nan)
  with pytest.raises(JaxchopError, match=r"2\.\.3 is not finite"):
    linear_map(broken, IDS_NT, MASK_NT, 2, 4)
