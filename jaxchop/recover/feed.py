"""How batches reach the devices: each process reads the rows that its own devices need, checks and places them."""

from collections.abc import Generator
from typing import Protocol

import numpy as np
from jax.sharding import Mesh
from numpy.typing import NDArray

from jaxchop.data.batch import Batch, batch_of
from jaxchop.errors import JaxchopError
from jaxchop.parallel.sharding import own_rows, spread_rows
from jaxchop.recover.run import Run
from jaxchop.training import RecoverConfig


class Batches(Protocol):
  """Where training records come from; the batch of a step is a function of the step alone."""

  # Whether batches say where documents end.
  segments: bool

  def from_step(self, step: int, rows: NDArray[np.int64]) -> Generator[Batch, None, None]:
    """Yields these rows of the global batch, as numpy arrays, of `step`, `step` + 1, …"""
    ...


def next_batch(records: Generator[Batch, None, None], run: Run) -> Batch:
  """Returns the next batch; raises JaxchopError when it is not what the settings and the model say."""
  batch, where = next(records, None), f"the batch of step {run.step + 1}"
  wanted = len(own_rows(run.mesh, run.config.batch_size)), run.config.seq_len + 1
  vocab = run.way.like.config.vocab_size
  if batch is None:
    raise JaxchopError(f"the data ends before {where}; lower recover.steps or give more text")
  if batch.ids.shape != wanted:
    raise JaxchopError(
      f"{where} has shape {list(batch.ids.shape)}, not {list(wanted)}; pack the data for these settings"
    )
  # A gather would clamp these without a word.
  if batch.ids.min() < 0 or batch.ids.max() >= vocab:
    raise JaxchopError(f"{where} has tokens outside 0..{vocab - 1}; pack the data with this model's tokenizer")
  return batch


def blank(config: RecoverConfig, mesh: Mesh | None, segments: bool) -> Batch:
  """Returns a batch of nothing, as this process would read it."""
  ids_RS = np.zeros((len(own_rows(mesh, config.batch_size)), config.seq_len + 1), np.int32)
  batch, top = batch_of(ids_RS, ids_RS if segments else None), config.distill.cache_top
  if not top:
    return batch
  said_RTK = np.zeros((*batch.weight.shape, top), np.int32)
  return batch._replace(likely=(said_RTK, said_RTK.astype(np.float32)))


def placed(batch: Batch, run: Run) -> Batch:
  """Returns a batch with its rows spread over the mesh."""
  if run.mesh is None:
    return batch
  return spread_rows(batch, run.mesh, own_rows(run.mesh, run.config.batch_size), run.config.batch_size)
