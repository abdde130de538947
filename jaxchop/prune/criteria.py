"""Every criterion by name: its formula with its source, what it is computed from, and how it chooses layers.

A higher score means a more important layer. x_l enters block l, x_{l+1} leaves it, before the final norm; means are
over tokens, then over calibration windows. Axes of arrays: … resamplings or none, S and R states, L layers.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from jaxchop.config import Criterion

Family = Literal["weights", "gradients", "activations", "loss"]
# Which layers a criterion drops: those of the lowest score, the contiguous run of the lowest score, or the first of an
# order of removal.
Chooses = Literal["lowest", "run", "order"]
Finish = Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Definition:
  """What a criterion is."""

  # Formula and source, as it stands in scores.json, plans and model cards.
  text: str
  family: Family
  # Statistic it is made of, see activations.py, gradients.py, weights.py and removal.py.
  statistic: str
  chooses: Chooses = "lowest"
  # From the statistic's mean over windows to the score of each layer.
  per_layer: Finish = lambda mean: mean
  # To the score of each run of layers [..., size - 1, start], NaN where a run would leave the model.
  runs: Finish | None = None
  # Another statistic, and from its mean to a value of each pair of states [..., S, R].
  pairs: tuple[str, Finish] | None = None


def runs_of(between_SR: np.ndarray) -> np.ndarray:
  """Returns [..., n - 1, s] = between[..., s, s + n]: what lies between the ends of each run of n layers."""
  layers = between_SR.shape[-1] - 1
  found = np.full((*between_SR.shape[:-2], layers, layers), np.nan)
  for size in range(1, layers + 1):
    found[..., size - 1, : layers - size + 1] = np.diagonal(between_SR, size, axis1=-2, axis2=-1)
  return found


def _each_layer(between_SR: np.ndarray) -> np.ndarray:
  return np.diagonal(between_SR, 1, axis1=-2, axis2=-1)


def _pooled(sums_3L: np.ndarray) -> np.ndarray:
  """1 - cos(x, y) from |y - x|², |y|² - |x|² and |x|²: |x / |x| - y / |y||² / 2 without subtracting near equals."""
  change_L, growth_L, before_L = np.moveaxis(sums_3L, -2, 0)
  x_L, y_L = np.sqrt(before_L), np.sqrt(before_L + growth_L)
  return (change_L - (growth_L / (x_L + y_L)) ** 2) / (2 * x_L * y_L)


def cka(hsic_SR: np.ndarray) -> np.ndarray:
  """Returns linear CKA of all pairs of states from their HSIC."""
  own_S = np.sqrt(np.diagonal(hsic_SR, axis1=-2, axis2=-1))
  return hsic_SR / (own_S[..., :, None] * own_S[..., None, :])


def _cka_change(hsic_3L: np.ndarray) -> np.ndarray:
  """1 - CKA(K, K + D) from the HSIC of (K, K), (K, D) and (D, D), without subtracting near equals."""
  before_L, mixed_L, change_L = np.moveaxis(hsic_3L, -2, 0)
  root_L = np.sqrt(before_L * (before_L + 2 * mixed_L + change_L))
  return (before_L * change_L - mixed_L**2) / (root_L * (root_L + before_L + mixed_L))


DEFINITIONS: dict[str, Definition] = {
  "magnitude_l1": Definition(
    family="weights",
    statistic="l1",
    text="sum of |w| over the layer's seven projections and two norms (Shortened LLaMA, arXiv 2402.02834)",
  ),
  "magnitude_l2": Definition(
    family="weights",
    statistic="l2",
    text="sum of w^2 over the layer's seven projections and two norms, without a root (Reassessing Layer Pruning, "
    "arXiv 2411.15558, as released)",
  ),
  "magnitude_l1_mean": Definition(
    family="weights",
    statistic="l1_mean",
    text="mean of |w| over the layer's projections and norms: magnitude_l1 a parameter, for layers of unequal size",
  ),
  "magnitude_l2_mean": Definition(
    family="weights",
    statistic="l2_mean",
    text="mean of w^2 over the layer's projections and norms: magnitude_l2 a parameter, for layers of unequal size",
  ),
  "taylor": Definition(
    family="gradients",
    statistic="taylor",
    text="sum over weights of |mean over windows of w * dL/dw|: the absolute value is taken after summing (Shortened "
    "LLaMA, arXiv 2402.02834, and LLM-Pruner, arXiv 2305.11627, as released)",
  ),
  "taylor_batch": Definition(
    family="gradients",
    statistic="absolute",
    text="mean over windows of the sum over weights of |w * dL/dw|: the absolute value is taken in each batch, a batch "
    "being one window (Shortened LLaMA, arXiv 2402.02834, eq. 3 per batch)",
  ),
  "taylor_signed": Definition(
    family="gradients",
    statistic="signed",
    text="minus the mean over windows of the sum over weights of w * dL/dw: the first-order rise of the loss when the "
    "layer's weights go to zero, with its sign (LLM-Pruner, arXiv 2305.11627, eq. 3 before the absolute value)",
    per_layer=np.negative,
  ),
  "block_influence": Definition(
    family="activations",
    statistic="cosine",
    text="1 - mean over tokens of cos(x_l, x_{l+1}), the cosine change (ShortGPT, arXiv 2403.03853)",
    per_layer=lambda cos_SR: 1 - _each_layer(cos_SR),
  ),
  "block_influence_pooled": Definition(
    family="activations",
    statistic="pooled",
    text="1 - cos(x_l, x_{l+1}), all tokens and channels of the calibration text as one vector (Reassessing Layer "
    "Pruning, arXiv 2411.15558, as released; the last layer is scored too)",
    per_layer=_pooled,
  ),
  "angular": Definition(
    family="activations",
    statistic="angle_last",
    chooses="run",
    text="arccos(cos(x_l, x_{l+n})) / pi at the last token; drops the run of n layers with the lowest (Gromov et al., "
    "arXiv 2403.17887)",
    per_layer=_each_layer,
    runs=runs_of,
  ),
  "angular_all": Definition(
    family="activations",
    statistic="angle",
    chooses="run",
    text="mean over all tokens of arccos(cos(x_l, x_{l+n})) / pi; drops the run of n layers with the lowest (Gromov et "
    "al., arXiv 2403.17887, over all tokens)",
    per_layer=_each_layer,
    runs=runs_of,
  ),
  "cosine": Definition(
    family="activations",
    statistic="cosine",
    chooses="run",
    text="1 - mean over tokens of (1 + cos(x_l, x_{l+n})) / 2; drops the run of n layers with the lowest "
    "(LLM-Streamline, arXiv 2403.19135)",
    per_layer=lambda cos_SR: (1 - _each_layer(cos_SR)) / 2,
    runs=lambda cos_SR: (1 - runs_of(cos_SR)) / 2,
  ),
  "relative_magnitude": Definition(
    family="activations",
    statistic="relative",
    text="mean over tokens of |x_{l+1} - x_l| / |x_{l+1}| (relative magnitude of short-transformers)",
  ),
  "euclidean": Definition(
    family="activations",
    statistic="euclidean",
    text="mean over tokens of |x_{l+1} - x_l| (Euclidean change of short-transformers)",
  ),
  "cka": Definition(
    family="activations",
    statistic="hsic_change",
    text="1 - linear CKA of x_l and x_{l+1}, tokens as examples, unbiased over windows (Nguyen, Raghu, Kornblith, "
    "arXiv 2010.15327)",
    per_layer=_cka_change,
    pairs=("hsic", cka),
  ),
  "perplexity": Definition(
    family="loss",
    statistic="without_each",
    text="perplexity of the calibration text by the model without the layer (Shortened LLaMA, arXiv 2402.02834)",
    per_layer=np.exp,
  ),
  "perplexity_run": Definition(
    family="loss",
    statistic="without_runs",
    chooses="run",
    text="perplexity of the calibration text by the model without n layers from l on; drops the run with the lowest "
    "(sliding window of zlab-princeton/llm-pruning-collection, arXiv 2606.14150, without its absolute difference)",
    per_layer=lambda nll_NL: np.exp(nll_NL[..., 0, :]),
    runs=np.exp,
  ),
  "perplexity_greedy": Definition(
    family="loss",
    statistic="order",
    chooses="order",
    text="round in which the layer goes when each round removes the one without which the perplexity of the "
    "calibration text is lowest and measures again (SLEB, arXiv 2402.09025); what stays has the last number",
  ),
}


def named(criteria: Sequence[Criterion] | Literal["all"]) -> tuple[str, ...]:
  """Returns the criteria asked for, each once, `all` being every one."""
  return tuple(DEFINITIONS) if criteria == "all" else tuple(dict.fromkeys(criteria))
