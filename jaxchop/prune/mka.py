"""MKA: neighbouring layers whose activations lie on like manifolds become one, by a weighted mean of their weights.

Source: arXiv 2406.16330 and its released pipeline.py. Shapes: N calibration sentences, B sentences at once, T tokens,
D width, M manifold coordinates, L layers.
"""

import functools
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxchop.compiler import Program
from jaxchop.errors import JaxchopError, UsageError
from jaxchop.model.llama import Block, Llama, positions
from jaxchop.model.rope import rotation
from jaxchop.progress import track
from jaxchop.prune.merge import Merge, Merged, Trial, finish, sentence_batches
from jaxchop.prune.subset import Turn

# Which pair of neighbours goes next: the most similar one, or the last two layers, as the released code always does.
MkaOrder = Literal["similar", "last"]
# Kernel width, density exponent and coordinates of the diffusion map.
_SIGMA, _ALPHA, _COORDINATES = 8.0, 0.5, 2
# Neighbours behind the estimates of mutual information and of entropy; at most one fewer than there are sentences.
_NEAR_INFORMATION, _NEAR_ENTROPY = 5, 50
# Tokens whose distances are added at once.
_TOKENS = 16
_LEAST_SENTENCES = 8


def mka(
  model: Llama,
  ids_NT: np.ndarray,
  mask_NT: np.ndarray,
  count: int,
  *,
  order: MkaOrder = "similar",
  beta: float = 1.0,
  batch_size: int = 8,
) -> Merged:
  """Returns `model` after `count` merges of two neighbouring blocks, which sit in the place of the lower one.

  Weights are a * lower + (1 - a) * upper, a = sigmoid(beta * s_i / (s_i + s_j)), s_i the mean similarity of layer i to
  all layers; all similarities are those of the whole model, and a merged block keeps its lower layer's. The released
  code computes the same a but writes the weights nowhere. A trial is one merge with the similarity of its pair.

  `ids_NT` are sentences as int32, `mask_NT` is true where they are no padding, which is on the right. Raises UsageError
  on a count that does not fit the model or too few sentences, JaxchopError on broken sentences or weights.
  """
  layers = len(model.layers)
  if not 0 <= count < layers:
    raise UsageError(f"mka: {count} of {layers} layers cannot go; at least one must stay, none may be added")
  if len(ids_NT) < _LEAST_SENTENCES:
    raise UsageError(f"mka: {len(ids_NT)} sentences are too few to see a manifold; give at least {_LEAST_SENTENCES}")
  similar_LL = layer_similarity(model, ids_NT, mask_NT, batch_size=batch_size)
  mean_L = similar_LL.mean(axis=1)
  alive, merges, trials = list(range(layers)), [], []
  for _ in range(count):
    at = len(alive) - 2
    if order == "similar":
      # Of equal pairs the later one goes.
      at = max(range(len(alive) - 1), key=lambda at: (similar_LL[alive[at], alive[at + 1]], at))
    low, high = alive[at : at + 2]
    weight = 1 / (1 + np.exp(-beta * mean_L[low] / (mean_L[low] + mean_L[high])))
    merges.append(Merge(into=low, layers=(high,), mode="convex", weight=float(weight)))
    trials.append(Trial(low, float(similar_LL[low, high]), True))
    del alive[at + 1]
  return finish(model, merges, trials)


def layer_similarity(model: Llama, ids_NT: np.ndarray, mask_NT: np.ndarray, *, batch_size: int = 8) -> np.ndarray:
  """Returns similar_LL: the NPIB of the diffusion maps of each two layers' outputs over the sentences, in float64.

  A point is a sentence: the raw residual stream that leaves the block, all tokens as one vector, zero at padding. The
  released code reads what enters the block instead, so its layer 0 is the embedding. Raises JaxchopError, naming the
  layer, where activations are not finite or so large that no sentence lies near another.
  """
  ranks = []
  for layer, distance_NN in enumerate(_distances(model, ids_NT, mask_NT, batch_size)):
    if not np.isfinite(distance_NN).all():
      raise JaxchopError(f"the activations that leave layer {layer} are not finite: its weights are broken")
    if (_kernel(distance_NN).sum(axis=0) - 1 < len(ids_NT) * np.finfo(float).eps).any():
      raise JaxchopError(
        f"mka: the activations that leave layer {layer} lie too far apart for a kernel of width {_SIGMA:g}; give fewer "
        "tokens a sentence"
      )
    ranks.append(ranked(diffusion_map(distance_NN)))
  similar = [[npib(a_NM, b_NM) for b_NM in ranks] for a_NM in ranks]
  return (np.array(similar) + np.array(similar).T) / 2


def diffusion_map(distance_NN: np.ndarray) -> np.ndarray:
  """Returns the points' coordinates [N, M] on their manifold, from their Euclidean distances.

  Kernel exp(-sqrt(distance / 8)), normalised by density to the power 0.5; two coordinates. Source: MKA.
  """
  kernel_NN = _kernel(distance_NN)
  density_N = kernel_NN.sum(axis=0)
  kernel_NN = kernel_NN / np.outer(density_N, density_N) ** _ALPHA
  root_N = np.sqrt(kernel_NN.sum(axis=0))
  value_N, vector_NN = np.linalg.eigh(kernel_NN / np.outer(root_N, root_N))
  largest = np.argsort(-np.abs(value_N))[: _COORDINATES + 1]
  return vector_NN[:, largest[1:]] / vector_NN[:, largest[:1]]


def _kernel(distance_NN: np.ndarray) -> np.ndarray:
  return np.exp(-np.sqrt(distance_NN / _SIGMA))


def ranked(point_NM: np.ndarray) -> np.ndarray:
  """Returns each coordinate's rank among the points, 0..N-1: what is alike then does not depend on scale."""
  return np.argsort(np.argsort(point_NM, axis=0, kind="stable"), axis=0, kind="stable").astype(np.float64)


def npib(a_NM: np.ndarray, b_NM: np.ndarray) -> float:
  """Returns the normalised information that two sets of ranks share: MI / sqrt(H_a * H_b).

  MI is the mean over pairs of one coordinate each, by the estimator of Kraskov et al., arXiv cond-mat/0305641, eq. 8,
  in nats. H is a nearest-neighbour entropy. It is counted in whole ranks, which keeps it positive; in shares of N, as
  released, it is about 0 and of either sign.
  """
  pairs = [_information(a_N, b_N) for a_N in a_NM.T for b_N in b_NM.T]
  return float(np.mean(pairs) / np.sqrt(_entropy(a_NM) * _entropy(b_NM)))


def _information(a_N: np.ndarray, b_N: np.ndarray) -> float:
  """Returns the mutual information of two coordinates in nats, at least 0."""
  count = len(a_N)
  near = min(_NEAR_INFORMATION, count - 1)
  a_NN, b_NN = (np.abs(x_N[:, None] - x_N) for x_N in (a_N, b_N))
  # Column 0 is the point itself.
  radius_N1 = np.sort(np.maximum(a_NN, b_NN), axis=1)[:, near, None]
  # Digamma at 1..N, less a constant that cancels.
  digamma_N = np.concatenate([[0.0], np.cumsum(1 / np.arange(1, count))])
  inside = sum(digamma_N[(x_NN < radius_N1).sum(axis=1) - 1].mean() for x_NN in (a_NN, b_NN))
  return max(0.0, float(digamma_N[near - 1] + digamma_N[count - 1] - inside))


def _entropy(point_NM: np.ndarray) -> float:
  """Returns the mean of log(N * r^M / k), where r is a point's distance to its k-th neighbour, in nats."""
  count, coordinates = point_NM.shape
  near = min(_NEAR_ENTROPY, count - 1)
  distance_NN = np.linalg.norm(point_NM[:, None] - point_NM, axis=-1)
  radius_N = np.sort(distance_NN, axis=1)[:, near]
  return float(np.mean(np.log(count * radius_N**coordinates / near)))


def _distances(model: Llama, ids_NT: np.ndarray, mask_NT: np.ndarray, batch_size: int) -> Sequence[np.ndarray]:
  """Returns distance_NN between the sentences after each block; one layer's activations are held at a time."""
  batches = sentence_batches(ids_NT, mask_NT, batch_size)
  turn = rotation(model.config, positions(jnp.asarray(ids_NT)))
  states = [np.asarray(model.embed(jnp.asarray(ids_BT))) for ids_BT, _ in batches]
  distances = []
  for layer in track(model.layers, "Comparing layers by MKA", len(model.layers), "layers"):
    states = [np.asarray(_through(layer, x_BTD, turn)) for x_BTD in states]
    real = [
      x_BTD[mask_BT[:, 0]].astype(np.float32) * mask_BT[mask_BT[:, 0], :, None]
      for x_BTD, (_, mask_BT) in zip(states, batches, strict=True)
    ]
    distances.append(_euclidean(np.concatenate(real)))
  return distances


@Program
def _through(layer: Block, x_BTD: jax.Array, turn: Turn) -> jax.Array:
  return layer(x_BTD, turn)


def _euclidean(x_NTD: np.ndarray) -> np.ndarray:
  """Returns distance_NN of the sentences as one vector each, summed in float64, a few tokens at a time."""
  slices = (x_NTD[:, start : start + _TOKENS] for start in range(0, x_NTD.shape[1], _TOKENS))
  product_NN = functools.reduce(np.add, (_gram(part.reshape(len(part), -1).astype(np.float64)) for part in slices))
  square_N = np.diag(product_NN)
  return np.sqrt(np.maximum(square_N[:, None] + square_N - 2 * product_NN, 0.0))


def _gram(x_NI: np.ndarray) -> np.ndarray:
  return x_NI @ x_NI.T
