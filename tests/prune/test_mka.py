"""MKA's similarity step by step in plain numpy, and what it merges."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxchop.errors import JaxchopError, UsageError
from jaxchop.model.config import LlamaConfig
from jaxchop.model.llama import positions
from jaxchop.model.rope import rotation
from jaxchop.model.tree import abstract
from jaxchop.prune.merge import apply_merges
from jaxchop.prune.mka import diffusion_map, layer_similarity, mka, npib, ranked
from jaxchop.prune.surgery import keep_layers

CONFIG = LlamaConfig(
  vocab_size=32, width=16, mlp_width=24, heads=4, kv_heads=2, head_dim=4, norm_eps=1e-5, max_positions=64
)
LAYERS, SENTENCES = 5, 12
LENGTHS = np.random.default_rng(2).integers(3, 7, SENTENCES)
IDS_NT = np.random.default_rng(0).integers(32, size=(SENTENCES, 6), dtype=np.int32)
MASK_NT = np.arange(6) < LENGTHS[:, None]
run = jax.jit(lambda block, x_BTD, turn: block(x_BTD, turn))


@pytest.fixture(scope="module")
def model():
  rng = np.random.default_rng(1)
  like = abstract(CONFIG, LAYERS)
  return jax.tree.map(
    lambda leaf: jnp.asarray(rng.normal(*((1.0, 0.1) if leaf.ndim == 1 else (0.0, 0.2)), leaf.shape), jnp.float32), like
  )


@pytest.fixture(scope="module")
def similar(model):
  return layer_similarity(model, IDS_NT, MASK_NT, batch_size=5)


def plain_information(a, b, near=5):
  """Kraskov's first estimator, by counting: points strictly nearer than the near-th neighbour in the plane."""
  count, total = len(a), 0.0
  digamma = [-np.euler_gamma]
  for n in range(1, 2 * count):
    digamma.append(digamma[-1] + 1 / n)
  for i in range(count):
    others = [j for j in range(count) if j != i]
    radius = sorted(max(abs(a[i] - a[j]), abs(b[i] - b[j])) for j in others)[near - 1]
    inside = [sum(abs(x[i] - x[j]) < radius for j in others) for x in (a, b)]
    # digamma(n + 1) is the list's n-th.
    total += digamma[inside[0]] + digamma[inside[1]]
  return max(0.0, digamma[near - 1] + digamma[count - 1] - total / count)


def plain_entropy(points, near):
  count, logs = len(points), []
  for i in range(count):
    radius = sorted(math.dist(points[i], points[j]) for j in range(count) if j != i)[near - 1]
    logs.append(math.log(count * radius ** len(points[i]) / near))
  return sum(logs) / count


def plain_npib(a, b):
  near = min(50, len(a) - 1)
  information = np.mean([plain_information(x, y) for x in np.transpose(a) for y in np.transpose(b)])
  return information / math.sqrt(plain_entropy(a, near) * plain_entropy(b, near))


def plain_ranks(points):
  return np.array([[sum(other < value for other in column) for value in column] for column in np.transpose(points)]).T


def plain_map(distance_NN):
  """The released steps, with the singular vectors that they take."""
  kernel = np.exp(-((distance_NN / 8) ** 0.5))
  density = kernel.sum(axis=0)
  kernel = kernel / (density * density[:, None]) ** 0.5
  root = np.sqrt(kernel.sum(axis=0))
  left = np.linalg.svd(kernel / np.outer(root, root))[0]
  return left[:, 1:3] / left[:, :1]


def flipped(points):
  """Singular vectors have no sign: the first point's coordinates are made positive."""
  return points * np.sign(points[0])


def random_ranks(seed, count=20):
  return np.stack([np.random.default_rng([seed, n]).permutation(count) for n in range(2)], axis=1).astype(float)


@pytest.mark.parametrize("count", [9, 20, 60])
def test_npib_is_information_over_the_root_of_both_entropies(count):
  a, b = random_ranks(0, count), random_ranks(1, count)
  b[:, 0] = ranked(a[:, :1] + 0.2 * b[:, :1])[:, 0]
  assert plain_npib(a, b) > 0
  assert npib(a, b) == pytest.approx(plain_npib(a, b), rel=1e-12)
  assert npib(a, a) == pytest.approx(plain_npib(a, a), rel=1e-12)


@given(st.integers(0, 1000))
def test_no_manifold_is_as_like_another_as_like_itself(seed):
  a, b = random_ranks(seed), random_ranks(seed + 5000)
  assert 0 <= npib(a, b) < npib(a, a)
  # Which way a coordinate points says nothing.
  assert npib(19 - a, b) == pytest.approx(npib(a, b))


def test_a_diffusion_map_is_that_of_the_released_steps():
  points = np.random.default_rng(0).normal(0, 20, (15, 30))
  distance_NN = np.linalg.norm(points[:, None] - points, axis=-1)
  np.testing.assert_allclose(flipped(diffusion_map(distance_NN)), flipped(plain_map(distance_NN)), rtol=1e-6)


def test_layers_are_compared_by_all_their_unpadded_outputs(model, similar):
  states = [[] for _ in range(LAYERS)]
  for ids_T, length in zip(IDS_NT, LENGTHS, strict=True):
    ids_1T = jnp.asarray(ids_T[None, :length])
    x_1TD, turn = model.embed(ids_1T), rotation(CONFIG, positions(ids_1T))
    for layer, block in enumerate(model.layers):
      x_1TD = run(block, x_1TD, turn)
      flat = np.asarray(x_1TD, np.float64).ravel()
      states[layer].append(np.pad(flat, (0, 6 * CONFIG.width - flat.size)))
  ranks = []
  for layer in range(LAYERS):
    distance_NN = [[np.linalg.norm(a - b) for b in states[layer]] for a in states[layer]]
    ranks.append(plain_ranks(plain_map(np.array(distance_NN))))
  expected = [[plain_npib(a, b) for b in ranks] for a in ranks]
  np.testing.assert_allclose(similar, expected, rtol=1e-9)
  assert np.ptp(similar[np.triu_indices(LAYERS, 1)]) > 0.01


def weight_of(similar_LL, low, high, beta=1.0):
  low, high = similar_LL[low].mean(), similar_LL[high].mean()
  return 1 / (1 + math.exp(-beta * low / (low + high)))


def test_the_most_similar_neighbours_become_one_and_the_weights_are_really_written(model, similar):
  found = mka(model, IDS_NT, MASK_NT, 1, batch_size=5)
  low = max(range(LAYERS - 1), key=lambda layer: similar[layer, layer + 1])
  (merge,) = found.merges
  assert (merge.into, merge.layers, merge.mode) == (low, (low + 1,), "convex")
  assert merge.weight == pytest.approx(weight_of(similar, low, low + 1))
  assert found.trials == ((low, pytest.approx(similar[low, low + 1]), True),)
  assert found.keep == tuple(layer for layer in range(LAYERS) if layer != low + 1)
  kernels = [np.asarray(model.layers[layer].mlp.up.kernel[...]) for layer in (low, low + 1)]
  expected = merge.weight * kernels[0] + (1 - merge.weight) * kernels[1]
  np.testing.assert_allclose(found.model.layers[low].mlp.up.kernel[...], expected, atol=1e-6)


def test_more_merges_go_by_the_similarity_of_the_layers_whose_place_the_blocks_have(model, similar):
  found, alive = mka(model, IDS_NT, MASK_NT, 3), list(range(LAYERS))
  for merge, trial in zip(found.merges, found.trials, strict=True):
    pairs = {pair: similar[pair] for pair in itertools.pairwise(alive)}
    assert trial.similarity == pytest.approx(max(pairs.values()))
    assert pairs[merge.into, *merge.layers] == pytest.approx(max(pairs.values()))
    alive.remove(merge.layers[0])
  assert found.keep == tuple(alive)
  leaves = jax.tree.leaves(apply_merges(model, found.merges))
  assert all((a == b).all() for a, b in zip(leaves, jax.tree.leaves(found.model), strict=True))


def test_the_released_order_merges_the_last_two_each_time(model, similar):
  found = mka(model, IDS_NT, MASK_NT, 3, order="last", beta=2.0)
  assert [(merge.into, merge.layers) for merge in found.merges] == [(3, (4,)), (2, (3,)), (1, (2,))]
  weights = [weight_of(similar, low, low + 1, beta=2.0) for low in (3, 2, 1)]
  assert [merge.weight for merge in found.merges] == pytest.approx(weights)
  assert found.keep == (0, 1)


def test_a_count_or_a_calibration_that_does_not_fit_is_refused(model):
  for count in (-1, LAYERS):
    with pytest.raises(UsageError, match=f"{count} of {LAYERS}"):
      mka(model, IDS_NT, MASK_NT, count)
  with pytest.raises(UsageError, match="7 sentences"):
    mka(model, IDS_NT[:7], MASK_NT[:7], 1)


@pytest.mark.parametrize(("value", "said"), [(jnp.nan, "layer 1 are not finite"), (1e9, "layer 1 lie too far apart")])
def test_activations_that_show_no_manifold_are_refused_with_their_layer(model, value, said):
  broken = keep_layers(model, range(LAYERS))
  down = broken.layers[1].mlp.down
  down.kernel[...] = down.kernel[...] * value
  with pytest.raises(JaxchopError, match=said):
    mka(broken, IDS_NT, MASK_NT, 1)
