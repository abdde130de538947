"""How batches reach the devices: each process reads the rows that its own devices need, checks and places them."""

from collections.abc import Generator
from typing import TYPE_CHECKING, Protocol

import jax
import numpy as np
from jax.sharding import Mesh
from numpy.typing import NDArray

from jaxchop.data.batch import Batch, batch_of
from jaxchop.errors import JaxchopError
from jaxchop.parallel.sharding import own_rows, rows, spread_rows
from jaxchop.training import RecoverConfig

if TYPE_CHECKING:
  from jaxchop.recover.run import Run


class Batches(Protocol):
  """Where training records come from; the batch of a step is a function of the step alone."""

  # Whether batches say where documents end.
  segments: bool

  def from_step(self, step: int, rows: NDArray[np.int64]) -> Generator[Batch, None, None]:
    """Yields these rows of the global batch, as numpy arrays, of `step`, `step` + 1, …"""
    ...


def next_batch(records: Generator[Batch, None, None], run: "Run") -> Batch:
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
  return _rows(config, len(own_rows(mesh, config.batch_size)), segments)


def batch_shapes(config: RecoverConfig, mesh: Mesh | None, segments: bool) -> Batch:
  """Returns the batch of a step as shapes in their places."""
  place = None if mesh is None else rows(mesh)

  def whole(part_RS: np.ndarray) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((config.batch_size, *part_RS.shape[1:]), part_RS.dtype, sharding=place)

  return jax.tree.map(whole, _rows(config, 1, segments))


def _rows(config: RecoverConfig, count: int, segments: bool) -> Batch:
  ids_RS = np.zeros((count, config.seq_len + 1), np.int32)
  batch, top = batch_of(ids_RS, ids_RS if segments else None), config.distill.cache_top
  if not top:
    return batch
  said_RTK = np.zeros((*batch.weight.shape, top), np.int32)
  return batch._replace(likely=(said_RTK, said_RTK.astype(np.float32)))


def placed(batch: Batch, run: "Run") -> Batch:
  """Returns a batch with its rows spread over the mesh."""
  if run.mesh is None:
    return batch
  return spread_rows(batch, run.mesh, own_rows(run.mesh, run.config.batch_size), run.config.batch_size)
