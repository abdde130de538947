"""Continuations of any lengths scored in batches of a few shapes, so that a whole benchmark runs a handful of programs.

Requests that differ in their last token alone, as the letters of a multiple choice do, are one row with several tokens
to score. Shapes: B rows of a batch, T tokens of a row, K scored tokens of a row, D width.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from jaxchop.compiler import Program
from jaxchop.errors import JaxchopError
from jaxchop.model.llama import Llama, hidden
from jaxchop.model.loss import token_nll_and_top
from jaxchop.model.placement import placed, spec_of

# A context and its continuation, in tokens.
Pair = tuple[Sequence[int], Sequence[int]]
# Rows are never shorter: below, a program costs more to compile than short rows save.
_SHORTEST = 32
# A row has places for all its tokens, or for one in so many.
_SPARSE = 8


@dataclasses.dataclass(slots=True)
class Row:
  """Tokens that go through the model together, and which tokens are scored after which of them."""

  ids: tuple[int, ...]
  # (place, token): its number among the row's scored tokens.
  scored: dict[tuple[int, int], int] = dataclasses.field(default_factory=dict)
  # (pair, numbers of its tokens) of each pair that is answered by the row.
  asked: list[tuple[int, list[int]]] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True, slots=True)
class Batch:
  """Some rows as arrays, filled up with empty ones."""

  rows: list[Row]
  ids: NDArray[np.int32]
  place: NDArray[np.int32]
  target: NDArray[np.int32]


def cut(pair: Pair, longest: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
  """Returns what goes into the model for a pair and what it should say at the end of it; the left is cut off.

  The last token is predicted, never read, so a row of `longest` tokens serves longest + 1. Raises JaxchopError when the
  continuation alone is longer than the model.
  """
  context, continuation = pair
  if len(continuation) > longest:
    raise JaxchopError(
      f"a continuation has {len(continuation)} tokens, the model {longest} positions: leave out its task, or raise "
      "max_length"
    )
  return tuple([*context, *continuation][-(longest + 1) :][:-1]), tuple(continuation)


def rows_of(pairs: Sequence[tuple[tuple[int, ...], tuple[int, ...]]], longest: int) -> list[Row]:
  """Returns the rows that answer all pairs, made by `cut`, the longest first."""
  open_rows: dict[tuple[int, ...], Row] = {}
  rows = []
  for number, (ids, targets) in enumerate(pairs):
    row = open_rows.get(ids)
    if row is None or len(row.scored) + len(targets) > _width(len(ids), longest):
      row = open_rows[ids] = Row(ids)
      rows.append(row)
    places = range(len(ids) - len(targets), len(ids))
    numbers = [row.scored.setdefault(key, len(row.scored)) for key in zip(places, targets, strict=True)]
    row.asked.append((number, numbers))
  return sorted(rows, key=lambda row: (-_width(len(row.ids), longest), -len(row.scored), -len(row.ids), row.ids))


def batches(rows: Sequence[Row], size: int, longest: int) -> Iterator[Batch]:
  """Yields `size` rows at a time, in at most four shapes a power of two of their length."""
  for start in range(0, len(rows), size):
    part = list(rows[start : start + size])
    width = max(_width(len(row.ids), longest) for row in part)
    scored = max(len(row.scored) for row in part)
    ids_BT = np.zeros((size, width), np.int32)
    place_BK = np.zeros((size, sparse if scored <= (sparse := max(width // _SPARSE, 1)) else width), np.int32)
    target_BK = np.zeros_like(place_BK)
    for index, row in enumerate(part):
      ids_BT[index, : len(row.ids)] = row.ids
      for (place, target), number in row.scored.items():
        place_BK[index, number], target_BK[index, number] = place, target
    yield Batch(part, ids_BT, place_BK, target_BK)


@Program
def score(model: Llama, ids_BT: jax.Array, place_BK: jax.Array, target_BK: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Returns nll_BK of each target, in nats, and whether it is the most probable token at its place."""
  x_BTD = hidden(model, ids_BT)

  def taken(x_BTD: jax.Array, place_BK: jax.Array) -> jax.Array:
    return jnp.take_along_axis(x_BTD, place_BK[..., None], axis=1)

  # Logits of the scored places alone: the contexts are most of a batch.
  x_BKD = placed(taken, spec_of(x_BTD), x_BTD, place_BK)
  nll_BK, top_BK = token_nll_and_top(model.norm(x_BKD), model.head_DV(), target_BK)
  return nll_BK, top_BK == target_BK


def _width(length: int, longest: int) -> int:
  """Returns the tokens of the row that so many go into: 2^n or 1.5 * 2^n, but never more than the model takes."""
  power = max(_SHORTEST, 1 << (length - 1).bit_length())
  return min(longest, power * 3 // 4 if power > _SHORTEST and length <= power * 3 // 4 else power)
