"""One layer learns what several did; nothing else moves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxchop.errors import JaxchopError, UsageError
from jaxchop.model.config import LlamaConfig
from jaxchop.model.llama import positions
from jaxchop.model.rope import rotation
from jaxchop.model.tree import abstract, flatten
from jaxchop.prune.streamline import StreamlineConfig, streamline
from jaxchop.prune.surgery import keep_layers

CONFIG = LlamaConfig(
  vocab_size=32, width=16, mlp_width=24, heads=4, kv_heads=2, head_dim=4, norm_eps=1e-5, max_positions=64
)
IDS_NT = np.random.default_rng(0).integers(32, size=(8, 6), dtype=np.int32)
MASK_NT = np.arange(6) < np.array([6, 3, 5, 6, 2, 4, 6, 1])[:, None]
# One batch holds all sentences, so that first and last loss are of the same ones.
WHOLE = StreamlineConfig(start=1, end=4, batch_size=8)
run = jax.jit(lambda block, x_BTD, turn: block(x_BTD, turn))


@pytest.fixture(scope="module")
def model():
  rng = np.random.default_rng(1)
  like = abstract(CONFIG, 5)
  return jax.tree.map(
    lambda leaf: jnp.asarray(rng.normal(*((1.0, 0.1) if leaf.ndim == 1 else (0.0, 0.1)), leaf.shape), jnp.float32), like
  )


def states(model, layers):
  ids_NT = jnp.asarray(IDS_NT)
  x_NTD, turn = model.embed(ids_NT), rotation(CONFIG, positions(ids_NT))
  for layer in layers:
    x_NTD = run(layer, x_NTD, turn)
  return np.asarray(x_NTD, np.float64)


def error(model, layer, start=1, end=4):
  """Returns the mean squared error of a layer in place of the run, over real tokens."""
  whole, short = states(model, model.layers[:end]), states(model, [*model.layers[:start], layer])
  return ((whole - short)[MASK_NT] ** 2).mean()


def with_config(**settings):
  return StreamlineConfig(**{"start": 1, "end": 4, "batch_size": 8, **settings})


def test_the_loss_falls_from_the_first_layers_alone_to_the_trained_ones(model):
  found = streamline(model, IDS_NT, MASK_NT, with_config(epochs=60, learning_rate=1e-2, final_learning_rate=1e-3))
  assert found.steps == 60
  assert found.first_loss == pytest.approx(error(model, model.layers[1]), rel=1e-4)
  assert found.last_loss < 0.5 * found.first_loss
  assert error(model, found.model.layers[1]) < 1.01 * found.last_loss


def test_only_the_replaced_layer_changes(model):
  found = streamline(model, IDS_NT, MASK_NT, WHOLE)
  assert found.keep == (0, 1, 4)
  before, after = flatten(keep_layers(model, found.keep)), flatten(found.model)
  assert before.keys() == after.keys()
  for name, leaf in after.items():
    if name.startswith("layers.1."):
      assert (leaf != before[name]).any(), name
    else:
      assert leaf is before[name], name


def test_the_first_update_is_as_large_as_the_first_learning_rate(model):
  """AdamW's first step moves every weight by the rate, whatever the gradient, and decays it by rate * weight."""
  found = streamline(model, IDS_NT, MASK_NT, with_config(learning_rate=1e-3, weight_decay=0.5))
  old, new = (np.asarray(m.layers[1].mlp.up.kernel[...], np.float64) for m in (model, found.model))
  moved = new - (1 - 1e-3 * 0.5) * old
  np.testing.assert_allclose(np.abs(moved), 1e-3, rtol=1e-2)


def test_a_later_update_is_at_the_final_rate(model):
  """With a first rate of next to nothing, what moves is the second and last step; its rate bounds Adam's update."""
  found = streamline(model, IDS_NT, MASK_NT, with_config(epochs=2, learning_rate=1e-9, final_learning_rate=1e-3))
  moved = np.abs(np.asarray(found.model.layers[1].mlp.up.kernel[...] - model.layers[1].mlp.up.kernel[...]))
  np.testing.assert_allclose(moved, 1e-3, rtol=1e-2)


def test_a_run_whose_rest_adds_nothing_is_its_first_layer_already(model):
  still = keep_layers(model, range(5))
  for layer in still.layers[2:4]:
    for part in (layer.attention.o, layer.mlp.down):
      part.kernel[...] = jnp.zeros_like(part.kernel[...])
  found = streamline(still, IDS_NT, MASK_NT, WHOLE)
  assert found.first_loss == pytest.approx(0, abs=1e-10)


def test_a_run_may_begin_at_layer_0_and_end_with_the_last(model):
  found = streamline(model, IDS_NT, MASK_NT, with_config(start=0, end=5))
  assert found.keep == (0,)
  assert found.first_loss == pytest.approx(error(model, model.layers[0], 0, 5), rel=1e-4)


def test_what_stands_in_the_padding_changes_nothing(model):
  other = np.where(MASK_NT, IDS_NT, 31 - IDS_NT).astype(np.int32)
  one, two = (streamline(model, ids, MASK_NT, WHOLE) for ids in (IDS_NT, other))
  assert (other != IDS_NT).any()
  assert one.first_loss == two.first_loss
  np.testing.assert_array_equal(one.model.layers[1].mlp.up.kernel[...], two.model.layers[1].mlp.up.kernel[...])


def test_the_seed_decides_the_order_and_what_fills_no_batch_waits_for_the_next_epoch(model):
  found = [streamline(model, IDS_NT, MASK_NT, with_config(batch_size=3, epochs=2, seed=seed)) for seed in (0, 0, 1)]
  assert found[0].first_loss == found[1].first_loss != found[2].first_loss
  assert [one.steps for one in found] == [4, 4, 4]


def test_a_bfloat16_model_is_trained_in_float32_and_stays_bfloat16(model):
  half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), model)
  # Updates of 1e-5 that bfloat16 would lose one by one.
  found = streamline(half, IDS_NT, MASK_NT, with_config(epochs=100, learning_rate=1e-5, final_learning_rate=1e-5))
  kernel = found.model.layers[1].mlp.up.kernel[...]
  assert kernel.dtype == jnp.bfloat16
  assert (kernel != half.layers[1].mlp.up.kernel[...]).mean() > 0.3
  assert found.last_loss < found.first_loss


@pytest.mark.parametrize(
  ("settings", "said"),
  [
    ({"start": 2, "end": 3}, "start 2 and end 3"),
    ({"start": -1}, "start -1"),
    ({"end": 6}, "end 6"),
    ({"epochs": 0}, "merging.epochs is 0"),
    ({"batch_size": 9}, r"merging.batch_size is 9; .* 1\.\.8"),
  ],
)
def test_settings_that_do_not_fit_are_refused_by_name(model, settings, said):
  with pytest.raises(UsageError, match=said):
    streamline(model, IDS_NT, MASK_NT, with_config(**settings))


def test_a_loss_that_is_not_finite_is_refused(model):
  broken = keep_layers(model, range(5))
  broken.layers[2].mlp.up.kernel[...] = jnp.full_like(broken.layers[2].mlp.up.kernel[...], jnp.nan)
  with pytest.raises(JaxchopError, match=r"1\.\.3 is not finite"):
    streamline(broken, IDS_NT, MASK_NT, WHOLE)
