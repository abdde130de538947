"""The loss on held-out windows between steps, which tells the best checkpoint.

Shapes: N windows, B windows of a batch, S tokens.
"""

from collections.abc import Callable

import jax
import numpy as np
from numpy.typing import NDArray

from jaxchop.data.batch import Batch, batch_of
from jaxchop.parallel.sharding import own_rows, spread_rows
from jaxchop.recover.program import State, lowered_loss
from jaxchop.recover.run import Run


class HeldOut:
  """Held-out windows in batches as large as a step's micro-batch, spread over the devices in the same way."""

  def __init__(self, ids_NS: NDArray[np.int32], run: Run):
    """Compiles the program for the run's model: several processes wait for each other before the first step."""
    config = run.config
    self.rows = config.batch_size // config.accumulate
    self._ids_NS, self._mesh, self._run = ids_NS, run.mesh, run

    state = State(run.trained, run.opt_state, run.frozen)
    self._summed = lowered_loss(config, run.way, state, self._batch(ids_NS[: self.rows])).compile()

  def loss(self, stopped: Callable[[], bool]) -> float | None:
    """Returns the mean loss in nats a token; None when `stopped` says between two batches that there is no time."""
    total = 0.0
    for start in range(0, len(self._ids_NS), self.rows):
      if stopped():
        return None
      batch = self._batch(self._ids_NS[start : start + self.rows])
      total += float(self._summed(self._run.trained, self._run.frozen, batch))
    return total / (self._ids_NS[:, 1:].size)

  def _batch(self, ids_BS: NDArray[np.int32]) -> Batch:
    """Returns a whole batch: rows that are missing at the end count nothing."""
    missing = self.rows - len(ids_BS)
    batch = batch_of(np.pad(ids_BS, ((0, missing), (0, 0))))
    batch.weight[len(ids_BS) :] = 0
    if self._mesh is None:
      return batch
    own = own_rows(self._mesh, self.rows)
    return spread_rows(jax.tree.map(lambda a: a[own], batch), self._mesh, own, self.rows)
