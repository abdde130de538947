"""Repeats of one measurement: their median, and how sure it is."""

import dataclasses
import math
import statistics
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Spread:
  """What repeats of one thing came to, in the unit that was measured."""

  median: float
  # Between these two of the repeats the median of all that could have been lies with a probability of 95 %; with fewer
  # than six repeats they are the lowest and the highest, and it is less.
  low: float
  high: float
  mean: float
  # In the order in which they were measured.
  repeats: tuple[float, ...]


def spread(repeats: Sequence[float]) -> Spread:
  """Returns what one or more repeats say; the interval is that of order statistics, whatever the distribution."""
  ordered, count, cut = sorted(repeats), len(repeats), 0
  # As likely as a fair coin with so many throws, the median lies outside what is left when `cut` are cut on each side.
  while 2 * sum(math.comb(count, heads) for heads in range(cut + 2)) <= 0.05 * 2**count:
    cut += 1
  return Spread(
    median=statistics.median(ordered),
    low=ordered[cut],
    high=ordered[-1 - cut],
    mean=statistics.fmean(ordered),
    repeats=tuple(repeats),
  )
