"""Numbers that say what a model is worth, with the samples behind them: two models are told apart sample by sample.

The difference of two models on the same samples is known far better than either number. Shapes: N samples.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

# perplexity: the exponential of the samples' mean, told apart in nats; share: of 1; bits: of a byte; number: all else.
Unit = Literal["perplexity", "share", "bits", "number"]


def figure(
  value: float,
  unit: Unit,
  samples: Sequence[float] = (),
  weights: Sequence[float] = (),
  *,
  error: float | None = None,
) -> dict[str, Any]:
  """Returns a figure as JSON: value, standard error, unit, and samples whose mean is sum(samples) / sum(weights).

  Weights are 1 unless given. The error is that of the mean unless given, of a perplexity that of its exponential; None
  for fewer than two samples.
  """
  weights = weights or [1] * len(samples)
  if error is None and (found := error_of_mean(np.array(samples, float), np.array(weights, float))) is not None:
    error = value * found if unit == "perplexity" else found
  return {"value": value, "error": error, "unit": unit, "samples": list(samples), "weights": list(weights)}


def apart(one: Mapping[str, Any], other: Mapping[str, Any]) -> tuple[float, float | None] | None:
  """Returns by how much the mean of one figure's samples is above another's, and the standard error of that.

  None where they have no samples in common: other windows, or other items.
  """
  if not one["samples"] or one["weights"] != other["weights"]:
    return None
  weights_N, apart_N = np.array(one["weights"], float), np.subtract(one["samples"], other["samples"])
  return float(apart_N.sum() / weights_N.sum()), error_of_mean(apart_N, weights_N)


def error_of_mean(samples_N: NDArray[np.float64], weights_N: NDArray[np.float64]) -> float | None:
  """Returns the standard error of the ratio sum(samples) / sum(weights), the samples being drawn at random.

  The samples may be differences of two models'. None for fewer than two.
  """
  count = len(samples_N)
  if count < 2:
    return None
  off_N = samples_N - samples_N.sum() / weights_N.sum() * weights_N
  return float(np.sqrt(count / (count - 1) * np.sum(off_N**2)) / weights_N.sum())
