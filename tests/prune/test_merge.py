"""What a merged layer is, what a model after merges is, and what is no merge."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxchop.errors import JaxchopError, UsageError
from jaxchop.model.config import LlamaConfig
from jaxchop.model.tree import abstract, flatten
from jaxchop.prune.merge import (
  Merge,
  apply_merges,
  merge_from_json,
  merge_to_json,
  merged_block,
  sentence_batches,
)
from jaxchop.prune.surgery import keep_layers

CONFIG = LlamaConfig(
  vocab_size=32,
  width=16,
  mlp_width=24,
  heads=4,
  kv_heads=2,
  head_dim=4,
  norm_eps=1e-5,
  max_positions=64,
  attention_bias=True,
  mlp_bias=True,
)
NORMS = {"attention_norm.scale", "mlp_norm.scale"}
PROJECTIONS = {f"attention.{part}.{leaf}" for part in "qkvo" for leaf in ("kernel", "bias")} | {
  f"mlp.{part}.{leaf}" for part in ("gate", "up", "down") for leaf in ("kernel", "bias")
}


@pytest.fixture(scope="module")
def model():
  """Every leaf random, biases and norms too."""
  rng = np.random.default_rng(0)
  like = abstract(CONFIG, 5)
  return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(1.0 if leaf.ndim == 1 else 0.0, 0.2, leaf.shape)), like)


def leaves(block):
  return {name: np.asarray(leaf) for name, leaf in flatten(block).items()}


def test_telescope_is_the_last_layer_with_the_norms_of_the_base_bit_for_bit(model):
  base, *absorbed = model.layers[1:4]
  merged = leaves(merged_block(base, absorbed, "telescope"))
  assert merged.keys() == NORMS | PROJECTIONS
  for name, leaf in merged.items():
    np.testing.assert_array_equal(leaf, leaves(base if name in NORMS else absorbed[-1])[name], err_msg=name)


def test_rdsc_adds_the_difference_of_every_absorbed_layer_to_the_base(model):
  base, one, two = (leaves(layer) for layer in model.layers[1:4])
  merged = leaves(merged_block(model.layers[1], model.layers[2:4], "rdsc"))
  for name in PROJECTIONS:  # arXiv 2402.11187, eq. 1
    expected = base[name] + (one[name] - base[name]) + (two[name] - base[name])
    np.testing.assert_allclose(merged[name], expected, atol=1e-6, err_msg=name)
  for name in NORMS:
    np.testing.assert_array_equal(merged[name], base[name])


def test_convex_is_the_weighted_mean_of_two_layers(model):
  low, high = (leaves(layer) for layer in model.layers[1:3])
  merged = leaves(merged_block(model.layers[1], model.layers[2:3], "convex", 0.7))
  for name in PROJECTIONS:
    np.testing.assert_allclose(merged[name], 0.7 * low[name] + 0.3 * high[name], atol=1e-6, err_msg=name)
  for name in NORMS:
    np.testing.assert_array_equal(merged[name], low[name])


def test_convex_with_all_the_weight_on_the_base_is_dropping_the_other(model):
  small = apply_merges(model, [Merge(into=1, layers=(2,), mode="convex", weight=1.0)])
  before, after = flatten(keep_layers(model, (0, 1, 3, 4))), flatten(small)
  assert before.keys() == after.keys()
  for name, leaf in after.items():
    np.testing.assert_array_equal(leaf, before[name], err_msg=name)


def test_sums_are_rounded_once_where_weights_are_bfloat16(model):
  half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), model)
  merged = merged_block(half.layers[0], half.layers[1:4], "rdsc").mlp.up.kernel[...]
  wide = [np.asarray(layer.mlp.up.kernel[...], np.float64) for layer in half.layers]
  assert merged.dtype == jnp.bfloat16
  np.testing.assert_array_equal(merged, jnp.asarray(wide[1] + wide[2] + wide[3] - 2 * wide[0], jnp.bfloat16))


def test_merges_leave_a_shorter_list_and_share_what_they_do_not_change(model):
  small = apply_merges(model, [Merge(into=1, layers=(2, 3), mode="rdsc")])
  before, after = flatten(model), flatten(small)
  assert len(small.layers) == 3 and len(model.layers) == 5
  assert after["embedding"] is before["embedding"]
  for old, new in {0: 0, 4: 2}.items():
    for name in NORMS | PROJECTIONS:
      assert after[f"layers.{new}.{name}"] is before[f"layers.{old}.{name}"]


def test_a_block_that_absorbed_others_is_absorbed_as_it_has_become(model):
  merges = [Merge(into=2, layers=(3, 4), mode="telescope"), Merge(into=0, layers=(1, 2), mode="telescope")]
  (only,) = apply_merges(model, merges).layers
  np.testing.assert_array_equal(only.mlp.up.kernel[...], model.layers[4].mlp.up.kernel[...])
  np.testing.assert_array_equal(only.mlp_norm.scale[...], model.layers[0].mlp_norm.scale[...])


@pytest.mark.parametrize(
  ("merges", "said"),
  [
    ([(1, (2,)), (0, (2,))], "into layer 0: layer 2 was absorbed before"),
    ([(1, (2, 2))], "layer 2 was absorbed before"),
    ([(1, (2,)), (2, (3,))], "into layer 2: layer 2 was absorbed before"),
    ([(1, (5,))], "layer 5 is unknown"),
    ([(-1, (2,))], "layer -1 is unknown"),
    ([(1, (1, 2))], "into layer 1: it cannot absorb itself"),
    ([(1, ())], "into layer 1: layers is empty"),
  ],
)
def test_a_merge_of_layers_that_are_not_there_is_refused_with_the_layer(model, merges, said):
  with pytest.raises(UsageError, match=said):
    apply_merges(model, [Merge(into=into, layers=layers, mode="telescope") for into, layers in merges])


@pytest.mark.parametrize(
  ("mode", "layers", "weight"), [("convex", 1, None), ("convex", 2, 0.5), ("convex", 1, float("nan")), ("rdsc", 1, 0.5)]
)
def test_a_weight_that_is_missing_or_out_of_place_is_refused(model, mode, layers, weight):
  with pytest.raises(UsageError, match=r"into layer 0: .*convex"):
    Merge(into=0, layers=tuple(range(1, layers + 1)), mode=mode, weight=weight)
  with pytest.raises(UsageError, match="convex"):
    merged_block(model.layers[0], model.layers[1 : layers + 1], mode, weight)


@st.composite
def any_merge(draw):
  into, *layers = draw(st.lists(st.integers(0, 99), min_size=2, max_size=6, unique=True))
  if draw(st.booleans()):
    return Merge(into=into, layers=(layers[0],), mode="convex", weight=draw(st.floats(0, 1)))
  return Merge(into=into, layers=tuple(layers), mode=draw(st.sampled_from(["telescope", "rdsc"])))


@given(any_merge())
def test_a_merge_survives_its_file(merge):
  assert merge_from_json(json.loads(json.dumps(merge_to_json(merge)))) == merge


@pytest.mark.parametrize(
  ("change", "said"),
  [
    ({"into": "1"}, "'into'"),
    ({"into": True}, "'into'"),
    ({"into": -1}, "'into'"),
    ({"into": None}, "'into'"),
    ({"layers": 2}, "'layers'"),
    ({"layers": ["2"]}, "'layers'"),
    ({"layers": []}, "layers is empty"),
    ({"mode": "slerp"}, "'mode'"),
    ({"weight": "half"}, "'weight'"),
    ({"weight": 0.5}, "weight"),
    ({"wait": 1}, "'wait'"),
  ],
)
def test_a_broken_merge_is_refused_with_its_key(change, said):
  content = {"into": 1, "layers": [2], "mode": "rdsc", "weight": None}
  with pytest.raises(JaxchopError, match=said):
    merge_from_json(content | change)
  with pytest.raises(JaxchopError, match="object"):
    merge_from_json([content])


def test_sentences_come_in_equal_batches_filled_with_padding():
  ids_NT = np.arange(1, 16, dtype=np.int32).reshape(5, 3)
  mask_NT = np.array([[1, 1, 1], [1, 0, 0], [1, 1, 0], [1, 1, 1], [1, 1, 1]], bool)
  batches = sentence_batches(ids_NT, mask_NT, 2)
  assert [ids_BT.shape for ids_BT, _ in batches] == [(2, 3)] * 3
  real = np.concatenate([mask_BT for _, mask_BT in batches])
  np.testing.assert_array_equal(np.concatenate([ids_BT for ids_BT, _ in batches])[real], ids_NT[mask_NT])
  assert not real[5].any()


@pytest.mark.parametrize("row", [[0, 0, 0], [0, 1, 1], [1, 0, 1]])
def test_a_sentence_that_is_empty_or_padded_elsewhere_than_on_the_right_is_refused_with_its_number(row):
  mask_NT = np.array([[1, 1, 1], row], bool)
  with pytest.raises(JaxchopError, match="sentence 1"):
    sentence_batches(np.zeros((2, 3), np.int32), mask_NT, 2)


def test_sentences_without_their_mask_and_empty_batches_are_refused():
  ids_NT, mask_NT = np.zeros((2, 3), np.int32), np.ones((2, 3), bool)
  for ids, mask in ((ids_NT[:0], mask_NT[:0]), (ids_NT, mask_NT[:, :2]), (ids_NT[0], mask_NT[0])):
    with pytest.raises(JaxchopError, match="mask"):
      sentence_batches(ids, mask, 2)
  with pytest.raises(UsageError, match="batch_size"):
    sentence_batches(ids_NT, mask_NT, 0)
