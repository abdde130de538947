"""The sum of what devices have of a gradient, of which each keeps its own part, and gathering with such a gradient."""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import PartitionSpec

from jaxchop.target import on_cpu, on_flat_torus

# Columns of a tile of a TPU's memory.
_TILE = 128


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
    # Between slices more than a device's own part would be sent after two stages. On a torus of three axes SparseCores
    # scatter all at once (compiler.py); where there are none it sends twice the bytes, but over all links: by estimate
    # in 0.8 of the time of three stages.
    if shape[name] == together and not copies and on_flat_torus():
      gradient = _along_lines(gradient, name, axis, shape[name])
    else:
      gradient = _at_once(gradient, name, axis)
  return jax.lax.psum(gradient, copies) if copies else gradient


def _at_once(gradient: jax.Array, name: str, axis: int) -> jax.Array:
  """Scatters over all devices of a mesh axis in one collective."""
  if not on_cpu():
    return jax.lax.psum_scatter(gradient, name, scatter_dimension=axis, tiled=True)
  # Processes on CPUs talk by Gloo, which overwrites what it still sends when it scatters: some parts of more than a
  # megabyte come out wrong, without a word (jax issue 40830). Whole sums it gives rightly.
  total, size = jax.lax.psum(gradient, name), gradient.shape[axis] // jax.lax.axis_size(name)
  return jax.lax.dynamic_slice_in_dim(total, jax.lax.axis_index(name) * size, size, axis)


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def side_by_side(part: jax.Array, name: str, axis: int) -> jax.Array:
  """Returns what all devices of a mesh axis have, along a new array axis; inside of a `shard_map`.

  Of the gradient each keeps its own part of the sum.
  """
  return jax.lax.all_gather(part, name, axis=axis)


def _side_by_side(part: jax.Array, name: str, axis: int) -> tuple[jax.Array, None]:
  return side_by_side(part, name, axis), None


def _part_of_sum(name: str, axis: int, _: None, slope: jax.Array) -> tuple[jax.Array]:
  return (jnp.squeeze(_at_once(slope, name, axis), axis),)


side_by_side.defvjp(_side_by_side, _part_of_sum)


def names_of(part: Any) -> tuple[str, ...]:
  """Returns the mesh axes in one place of a partition spec."""
  return () if part is None else (part,) if isinstance(part, str) else tuple(part)


def _along_lines(gradient: jax.Array, name: str, axis: int, count: int) -> jax.Array:
  """Scatters over all of a torus of two axes, along one and then along the other.

  At once the compiler would sum up whole gradients, at twice the bytes. It scatters the last axis of an array as it is;
  parts of another one it would fill up, and then shift.
  """
  turned = jnp.swapaxes(gradient, axis, -1)
  for groups in two_stages(count):
    turned = _last_axis(turned, name, groups)
  if turned.shape[-1] < _TILE and axis == turned.ndim - 1:
    # It lies columns first, as what is updated by it does: rows first each would be filled up to a tile.
    return turned
  # Turned back in memory too, or what is updated by it would be turned instead: four times as much, before the forward
  # pass already, to lie there twice until the end. Nor is it to be turned before it is scattered.
  rows_first = Layout(tuple(range(turned.ndim)))
  back = jnp.swapaxes(with_layout_constraint(turned, rows_first), axis, -1)
  return with_layout_constraint(back, rows_first)


def _last_axis(gradient: jax.Array, name: str, groups: list[list[int]]) -> jax.Array:
  """Scatters the last axis over the devices of each group.

  Parts narrower than a tile the compiler would sum up whole, of all layers at the end of the step, to lie there until
  then. So as many rows go side by side as fill a tile.
  """
  *before, columns = gradient.shape
  parts, rows = len(groups[0]), math.prod(before)
  width = columns // parts
  beside = 1 if width >= _TILE else math.lcm(width, _TILE) // width
  if beside == 1 or rows % beside:
    last = gradient.ndim - 1
    return jax.lax.psum_scatter(gradient, name, scatter_dimension=last, tiled=True, axis_index_groups=groups)
  laid = gradient.reshape(rows // beside, beside, parts, width).swapaxes(1, 2).reshape(rows // beside, -1)
  part = jax.lax.psum_scatter(laid, name, scatter_dimension=1, tiled=True, axis_index_groups=groups)
  return part.reshape(*before, width)


def two_stages(count: int) -> tuple[list[list[int]], list[list[int]]]:
  """Returns groups along the first and along the second axis of a torus, the shorter one first, line after line."""
  outer = max(n for n in range(1, math.isqrt(count) + 1) if count % n == 0)
  inner = count // outer
  columns = [list(range(start, count, inner)) for start in range(inner)]
  return columns, [list(range(start, start + inner)) for start in range(0, count, inner)]
