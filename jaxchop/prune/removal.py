"""Criteria that take layers out and look at the loss: one at a time, in contiguous runs, or greedily.

A candidate shares what enters its first removed layer with the whole model, so that prefix is computed once and only
the layers behind it run again. The same compiled programs serve every candidate: which layers are dead is an argument.
Shapes: N calibration windows, B windows at once, T tokens, D width, L layers, S = L + 1 states (state l enters layer l,
the last one leaves the last layer), G candidates at once.
"""

import itertools
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxchop.compiler import Program
from jaxchop.model.llama import Llama, positions
from jaxchop.model.rope import rotation
from jaxchop.progress import stage
from jaxchop.prune.activations import mean_nll
from jaxchop.prune.journal import Journal
from jaxchop.prune.subset import layer_at, run_alive

# A half-open range of layers that a candidate removes.
Range = tuple[int, int]
# A batch of calibration windows: ids_BT, real_BT (false at padding), and how many rows of it count.
Batch = tuple[jax.Array, jax.Array, int]


def singles(layers: Sequence[int]) -> list[Range]:
  """Returns the ranges that remove one layer each."""
  return [(layer, layer + 1) for layer in layers]


def nothing(layers: int) -> list[Range]:
  """Returns the range behind the last layer: the candidate that removes nothing and runs no layer again."""
  return [(layers, layers)]


def contiguous(layers: int, longest: int) -> list[Range]:
  """Returns every range of 1..longest layers of a model, the whole model excepted."""
  return [
    (start, start + size) for size in range(1, min(longest, layers - 1) + 1) for start in range(layers - size + 1)
  ]


class Removals:
  """The loss of a model without any of its layers; what was measured once, in `journal` or before, is not run again."""

  def __init__(
    self, rest: Llama, stack: Any, batches: Sequence[Batch], *, together: int = 4, journal: Journal | None = None
  ):
    """`stack` holds the layers, see subset.py, `rest` the model around them; `together` candidates run as one batch."""
    self._rest, self._stack, self._batches, self._together = rest, stack, batches, together
    self._journal = journal or Journal()
    self._layers = len(jax.tree.leaves(stack)[0])

  def nll(self, ranges: Iterable[Range], removed: frozenset[int] = frozenset(), *, title: str) -> np.ndarray:
    """Returns nll_CN: per candidate and window the mean nats per token without `removed` and without its range."""
    ranges = list(ranges)
    names = [_named(removed | set(range(*r))) for r in ranges]
    alive_L = np.array([layer not in removed for layer in range(self._layers)])
    # Every group has the same size, so that there is one program; what is too much of it runs for nothing.
    size = min(self._together, len(ranges) // len({end for _, end in ranges}))
    with stage(title, len(ranges) * len(self._batches), "candidates") as bar:
      for index, batch in enumerate(self._batches):
        missing = [r for r, name in zip(ranges, names, strict=True) if self._journal.get(name, index) is None]
        bar.advance(len(ranges) - len(missing))
        if missing:
          for r, nll_B in self._measured(batch, missing, alive_L, size):
            self._journal.put(_named(removed | set(range(*r))), index, nll_B[: batch[2]].tolist())
            bar.advance(1)
    return np.array([[value for b in range(len(self._batches)) for value in self._journal[n, b]] for n in names])

  def _measured(
    self, batch: Batch, ranges: Sequence[Range], alive_L: np.ndarray, size: int
  ) -> Iterable[tuple[Range, np.ndarray]]:
    """Yields the losses of one batch, `size` candidates that end at the same layer at once."""
    ids_BT, real_BT, _ = batch
    states_SBTD = _entering(self._rest, self._stack, ids_BT, alive_L)
    leaving = partial(_leaving, self._rest, self._stack, states_SBTD, positions(ids_BT), alive_L)
    by_end = sorted(ranges, key=lambda r: (r[1], r[0]))
    for end, same in itertools.groupby(by_end, key=lambda r: r[1]):
      group = list(same)
      for at in range(0, len(group), size):
        part = group[at : at + size]
        starts_G = np.array([start for start, _ in part] + [part[0][0]] * (size - len(part)))
        nll_GB = _losses(self._rest, leaving(starts_G, end), ids_BT, real_BT)
        yield from zip(part, np.asarray(nll_GB), strict=False)


def greedy(
  removals: Removals, candidates: Sequence[int], rounds: int, *, title: str
) -> tuple[tuple[int, ...], tuple[np.ndarray, ...]]:
  """Returns the layers in the order of removal and, per round, the loss nll_CN of every candidate that was left.

  Each round removes the layer without which the loss is lowest, and measures the others anew; of equal ones the later
  layer goes. Source: SLEB, arXiv 2402.09025.
  """
  gone: list[int] = []
  found = []
  for number in range(rounds):
    left = [layer for layer in candidates if layer not in gone]
    nll_CN = removals.nll(singles(left), frozenset(gone), title=f"{title}, round {number + 1} of {rounds}")
    gone.append(left[_last_argmin(nll_CN.mean(axis=1))])
    found.append(nll_CN)
  return tuple(gone), tuple(found)


def _last_argmin(values: np.ndarray) -> int:
  return len(values) - 1 - int(np.argmin(values[::-1]))


def _named(removed: Iterable[int]) -> str:
  return ",".join(map(str, sorted(removed)))


@Program
def _entering(rest: Llama, stack: Any, ids_BT: jax.Array, alive_L: jax.Array) -> jax.Array:
  """Returns states_SBTD of the model of the layers that are alive."""
  turn = rotation(rest.config, positions(ids_BT))

  def body(x_BTD: jax.Array, index: jax.Array) -> tuple[jax.Array, jax.Array]:
    y_BTD = jax.lax.cond(alive_L[index], lambda x: layer_at(stack, index)(x, turn), lambda x: x, x_BTD)
    return y_BTD, x_BTD

  last_BTD, entering_LBTD = jax.lax.scan(body, rest.embed(ids_BT), jnp.arange(len(alive_L)))
  return jnp.concatenate([entering_LBTD, last_BTD[None]])


@Program
def _leaving(
  rest: Llama,
  stack: Any,
  states_SBTD: jax.Array,
  positions_1T: jax.Array,
  alive_L: jax.Array,
  starts_G: jax.Array,
  end: jax.Array,
) -> jax.Array:
  """Returns x_MTD that leaves the candidates without the layers starts_G..end, which all go on with layer `end`."""
  x_MTD = states_SBTD[starts_G].reshape(-1, *states_SBTD.shape[2:])
  return run_alive(stack, x_MTD, rotation(rest.config, positions_1T), alive_L, end)


@Program
def _losses(rest: Llama, x_MTD: jax.Array, ids_BT: jax.Array, real_BT: jax.Array) -> jax.Array:
  """Returns nll_GB of what left G candidates."""
  G = len(x_MTD) // len(ids_BT)
  return mean_nll(rest, x_MTD, jnp.tile(ids_BT, (G, 1)), jnp.tile(real_BT, (G, 1))).reshape(G, -1)
