"""The sum of what devices have of a gradient, of which each keeps its own part."""

import math
from typing import Any

import jax
from jax.sharding import PartitionSpec

from jaxchop.target import on_flat_torus


def scattered(gradient: jax.Array, spec: PartitionSpec, rows: PartitionSpec) -> jax.Array:
  """Returns this device's part, as `spec` says, of the sum over devices; inside of a `shard_map`.

  `rows` says along which mesh axes what the gradient was made of is spread: all but its last axis are summed over.
  """
  over = [name for part in rows[:-1] for name in names_of(part)]
  cut = [(name, axis) for axis, part in enumerate(spec) for name in names_of(part) if name in over]
  copies = tuple(name for name in over if name not in dict(cut))
  shape = jax.sharding.get_abstract_mesh().shape
  # Devices that have one copy of the model.
  together = math.prod(size for name, size in shape.items() if name not in copies)
  for name, axis in cut:
    for groups in _stages(shape[name], together):
      gradient = jax.lax.psum_scatter(gradient, name, scatter_dimension=axis, tiled=True, axis_index_groups=groups)
  return jax.lax.psum(gradient, copies) if copies else gradient


def names_of(part: Any) -> tuple[str, ...]:
  """Returns the mesh axes in one place of a partition spec."""
  return () if part is None else (part,) if isinstance(part, str) else tuple(part)


def _stages(count: int, together: int) -> list[list[list[int]] | None]:
  """Returns the groups of one scattering after the other over a mesh axis of `count` devices; None is all at once.

  Over all of a torus of two axes the compiler would sum up whole gradients, at twice the bytes; over one axis and then
  the other it does not.
  """
  return [None] if count < together or not on_flat_torus() else [*two_stages(count)]


def two_stages(count: int) -> tuple[list[list[int]], list[list[int]]]:
  """Returns groups along the first and along the second axis of a torus, the shorter one first, line after line."""
  outer = max(n for n in range(1, math.isqrt(count) + 1) if count % n == 0)
  inner = count // outer
  columns = [list(range(start, count, inner)) for start in range(inner)]
  return columns, [list(range(start, start + inner)) for start in range(0, count, inner)]
