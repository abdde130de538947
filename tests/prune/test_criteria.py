"""Known answers by hand, on a model of two layers that does what one can follow."""

import math

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxchop.config import ScoreConfig
from jaxchop.model.config import LlamaConfig
from jaxchop.model.llama import Llama
from jaxchop.prune.criteria import DEFINITIONS, named, runs_of
from jaxchop.prune.score import score
from jaxchop.prune.weights import counted

CONFIG = LlamaConfig(
  vocab_size=4, width=2, mlp_width=1, heads=1, kv_heads=1, head_dim=2, norm_eps=1e-12, max_positions=16
)
# Token 0 enters as (1, 0), token 1 as (0, 1), token 2 as (1, 1).
IDS_NT = np.array([[0, 0, 0, 0, 0], [2, 2, 2, 2, 2]], np.int32)


@pytest.fixture(scope="module")
def model():
  """Layer 0 turns (1, 0) into (1, 1) and leaves the direction of (1, 1); layer 1 adds nothing."""
  model = Llama(CONFIG, 2, rngs=nnx.Rngs(0))
  model.embedding[...] = jnp.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [0.0, 0.0]])
  for layer in model.layers:
    for part in (layer.attention.o, layer.mlp.down):
      part.kernel[...] = jnp.zeros_like(part.kernel[...])
  # All a token attends to is itself again: the first channel of its normed state goes to the second.
  first = model.layers[0].attention
  first.v.kernel[...] = jnp.array([[1.0, 0.0], [0.0, 1.0]])
  first.o.kernel[...] = jnp.array([[0.0, 1 / math.sqrt(2)], [0.0, 0.0]])
  return model


def values(model, name, ids_NT=IDS_NT[:1], **settings):
  return score(model, ids_NT, [name], ScoreConfig(**settings))[name]


def test_the_turn_by_45_degrees_is_seen_by_every_criterion_of_directions(model):
  cosine = math.cos(math.pi / 4)
  assert values(model, "block_influence").per_layer == pytest.approx((1 - cosine, 0), abs=1e-6)
  assert values(model, "block_influence_pooled").per_layer == pytest.approx((1 - cosine, 0), abs=1e-6)
  assert values(model, "cosine").per_layer == pytest.approx(((1 - cosine) / 2, 0), abs=1e-6)
  for name in ("angular", "angular_all"):
    found = values(model, name)
    assert found.per_layer == pytest.approx((0.25, 0), abs=2e-4)
    assert found.runs[1] == pytest.approx((0.25,), abs=2e-4)


def test_the_length_of_the_step_is_seen_by_every_criterion_of_lengths(model):
  assert values(model, "euclidean").per_layer == pytest.approx((1, 0), abs=1e-6)
  assert values(model, "relative_magnitude").per_layer == pytest.approx((1 / math.sqrt(2), 0), abs=1e-6)


def test_pooling_is_one_cosine_over_all_tokens_not_their_mean(model):
  # (1, 1) normed is itself, and (1, 1 / sqrt 2) is added to its second channel.
  y = np.array([[1, 1]] * 5 + [[1, 1 + 1 / math.sqrt(2)]] * 5)
  x = np.array([[1, 0]] * 5 + [[1, 1]] * 5)
  pooled = 1 - (x * y).sum() / math.sqrt((x * x).sum() * (y * y).sum())
  each = np.mean(1 - (x * y).sum(1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1))
  assert values(model, "block_influence_pooled", IDS_NT).per_layer[0] == pytest.approx(pooled, rel=1e-5)
  assert values(model, "block_influence", IDS_NT).per_layer[0] == pytest.approx(each, rel=1e-5)
  assert abs(pooled - each) > 0.01


def test_the_first_token_is_left_out_when_asked(model):
  ids_NT = np.array([[0, 2, 2, 2, 2]], np.int32)
  assert (
    values(model, "euclidean", ids_NT, skip_first=True).per_layer[0] < values(model, "euclidean", ids_NT).per_layer[0]
  )


def test_magnitudes_are_sums_over_projections_and_norms_to_the_last_weight(model):
  rng = np.random.default_rng(0)
  drawn = Llama(CONFIG, 2, rngs=nnx.Rngs(0))
  total, squares, count = 0.0, 0.0, 0
  for name, leaf in counted(drawn.layers[1]).items():
    whole = rng.integers(-8, 9, leaf.shape).astype(np.float32)
    total, squares, count = total + np.abs(whole).sum(), squares + (whole**2).sum(), count + whole.size
    *path, last = name.split(".")
    holder = drawn.layers[1]
    for part in path:
      holder = getattr(holder, part)
    getattr(holder, last)[...] = jnp.asarray(whole)
  assert values(drawn, "magnitude_l1").per_layer[1] == total
  assert values(drawn, "magnitude_l2").per_layer[1] == squares
  assert values(drawn, "magnitude_l1_mean").per_layer[1] == pytest.approx(total / count)
  assert values(drawn, "magnitude_l2_mean").per_layer[1] == pytest.approx(squares / count)


def test_where_the_absolute_value_is_taken_matters_when_windows_pull_in_opposite_directions():
  drawn = Llama(CONFIG, 2, rngs=nnx.Rngs(3))
  ids_NT = np.array([[0, 1, 0, 1, 0], [1, 0, 0, 2, 2], [2, 1, 2, 0, 1]], np.int32)
  found = score(drawn, ids_NT, ["taylor", "taylor_batch", "taylor_signed"])
  after, each, signed = (np.array(found[name].per_layer) for name in ("taylor", "taylor_batch", "taylor_signed"))
  assert (each > after * 1.01).all()
  assert (after > np.abs(signed)).all()
  one = score(drawn, ids_NT[:1], ["taylor", "taylor_batch"])
  np.testing.assert_allclose(one["taylor"].per_layer, one["taylor_batch"].per_layer, rtol=1e-5)


def test_the_pairs_of_cka_are_similarities_of_all_states(model):
  ids_NT = np.array([[0, 1, 2, 0, 1, 2, 2, 0], [1, 2, 0, 0, 2, 1, 1, 2]], np.int32)
  found = values(model, "cka", ids_NT)
  pairs = np.array(found.pairs)
  np.testing.assert_allclose(np.diag(pairs), 1, atol=1e-6)
  np.testing.assert_allclose(pairs, pairs.T, atol=1e-6)
  np.testing.assert_allclose(1 - np.diagonal(pairs, 1), found.per_layer, atol=1e-5)
  assert found.per_layer[1] == pytest.approx(0, abs=1e-6)
  assert found.per_layer[0] > 0.01


def test_runs_are_read_off_the_diagonals():
  between = np.arange(16.0).reshape(4, 4)
  found = runs_of(between)
  np.testing.assert_equal(found, [[1, 6, 11], [2, 7, np.nan], [3, np.nan, np.nan]])


def test_all_is_every_criterion_and_each_says_its_source():
  assert named("all") == tuple(DEFINITIONS)
  assert named(["cka", "taylor", "cka"]) == ("cka", "taylor")
  # A mean is the same sum a parameter, which no paper needed.
  unsourced = [name for name, definition in DEFINITIONS.items() if "(" not in definition.text]
  assert unsourced == ["magnitude_l1_mean", "magnitude_l2_mean"]
