"""What another draw of calibration windows might have said: intervals, and how sure a choice is.

Shapes: N windows, R resamplings, L layers.
"""

import itertools

import numpy as np

# Resamplings behind an interval, and the share of them inside it.
RESAMPLES, CONFIDENCE = 400, 0.95


def draws(windows: int) -> np.ndarray:
  """Returns share_RN: how much each window counts in each resampling with replacement; the same ones every time."""
  return np.random.default_rng(0).multinomial(windows, [1 / windows] * windows, size=RESAMPLES) / windows


def intervals(replicates_RL: np.ndarray) -> tuple[tuple[float, float], ...]:
  """Returns the percentile interval of each layer's score."""
  tail = 100 * (1 - CONFIDENCE) / 2
  low_L, high_L = np.percentile(replicates_RL, [tail, 100 - tail], axis=0)
  return tuple(zip(low_L.tolist(), high_L.tolist(), strict=True))


def stability(replicates_RL: np.ndarray, drop: tuple[int, ...], candidates: tuple[int, ...]) -> float:
  """Returns the share of the resamplings whose lowest candidates are exactly the set `drop`."""
  order_RC = np.argsort(replicates_RL[:, candidates], axis=1, kind="stable")[:, : len(drop)]
  return float(np.mean([{candidates[place] for place in row} == set(drop) for row in order_RC]))


def indistinct(replicates_RL: np.ndarray, order: tuple[int, ...]) -> tuple[bool, ...]:
  """Returns, for each layer of an order of removal and the one after it, whether the windows cannot tell them apart.

  They cannot when more than 5 % of the resamplings put the two the other way round.
  """
  return tuple(
    bool(np.mean(replicates_RL[:, first] >= replicates_RL[:, second]) > 1 - CONFIDENCE)
    for first, second in itertools.pairwise(order)
  )
