"""Removal orders that look at no weight: reverse order and its relatives.

Sources: reverse order in Reassessing Layer Pruning (arXiv 2411.15558); fixed patterns in LayerChop (arXiv 2305.14864)
and, before it, Poor Man's BERT (arXiv 2004.03844).
"""

import random
from collections.abc import Callable, Sequence

from jaxchop.config import Pattern


def removed_by(pattern: Pattern, candidates: Sequence[int], count: int, *, seed: int = 0) -> tuple[int, ...]:
  """Returns the `count` layers of the sorted `candidates` that the pattern removes, sorted."""
  if pattern == "random":
    return tuple(sorted(random.Random(seed).sample(list(candidates), count)))
  return tuple(sorted(_PATTERNS[pattern](list(candidates), count)))


def _tail(layers: list[int], count: int) -> list[int]:
  """The last ones: reverse order."""
  return layers[len(layers) - count :]


def _head(layers: list[int], count: int) -> list[int]:
  """The first ones."""
  return layers[:count]


def _middle(layers: list[int], count: int) -> list[int]:
  """One block in the middle; of two equally central blocks the later."""
  start = (len(layers) - count + 1) // 2
  return layers[start : start + count]


def _alternate(layers: list[int], count: int) -> list[int]:
  """Every second one counted from the end, the last kept; beyond half of them, then the others from the end."""
  return (layers[-2::-2] + layers[::-2])[:count]


def _max_gap(layers: list[int], count: int) -> list[int]:
  """What lies between evenly spaced survivors, the first and the last of which stay."""
  kept = len(layers) - count
  survivors = {round(i * (len(layers) - 1) / (kept - 1)) for i in range(kept)} if kept > 1 else {0} if kept else set()
  return [layer for place, layer in enumerate(layers) if place not in survivors]


_PATTERNS: dict[str, Callable[[list[int], int], list[int]]] = {
  "tail": _tail,
  "head": _head,
  "middle": _middle,
  "alternate": _alternate,
  "max_gap": _max_gap,
}
