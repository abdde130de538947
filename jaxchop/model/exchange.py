"""Tokens that change places: devices have their own tokens whole, or a part of the columns of all tokens.

The embedding is cut along its columns. To gather Llama-2-7B's is 246 MB on the wire of each of 16 chips, and to scatter
its gradient as much again; the 4,096 tokens of a chip are 31 MB there and 31 MB back.
All of it stands inside of a `shard_map`. `names` are the mesh axes that cut the columns, the first one in the largest
parts; `rows` says along which of them the tokens' own axes are spread.
Shapes: M axes of the tokens, D columns.
"""

from collections.abc import Sequence

import jax
from jax.sharding import PartitionSpec

from jaxchop.model.scatter import names_of


def all_rows(ids_M: jax.Array, names: Sequence[str], rows: PartitionSpec) -> jax.Array:
  """Returns what all devices along `names` have of an array of tokens."""
  for name in reversed(names):
    ids_M = jax.lax.all_gather(ids_M, name, axis=_axis(name, rows), tiled=True)
  return ids_M


def to_rows(x_MD: jax.Array, names: Sequence[str], rows: PartitionSpec) -> jax.Array:
  """Returns all columns of a device's own tokens, given its own columns of all tokens."""
  for name in reversed(names):
    x_MD = jax.lax.all_to_all(x_MD, name, _axis(name, rows), x_MD.ndim - 1, tiled=True)
  return x_MD


def to_columns(x_MD: jax.Array, names: Sequence[str], rows: PartitionSpec) -> jax.Array:
  """Undoes `to_rows`."""
  for name in names:
    x_MD = jax.lax.all_to_all(x_MD, name, x_MD.ndim - 1, _axis(name, rows), tiled=True)
  return x_MD


def _axis(name: str, rows: PartitionSpec) -> int:
  return next(axis for axis, part in enumerate(rows) if name in names_of(part))
