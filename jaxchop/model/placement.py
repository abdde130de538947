"""Products of arrays that may be spread over devices, without a word about which devices those are.

Under a mesh with explicit axes an array's type says along which of them it is spread. A kernel is gathered over the
mesh axes that the rows are spread over, just where it is used: a device holds the whole of one kernel at a time, and
the kernel's gradient goes back to where its parts lie. Without a mesh these are plain products.
A sequence that is spread over devices lies on them in stripes: the first of c devices has the positions 0, c, 2c, …
Shapes: M rows, I axis summed over, O output axis, V table rows, D table width, B batch, T sequence.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec


def spec_of(x: jax.Array) -> PartitionSpec | None:
  """Returns along which mesh axes each axis of an array is spread; None where there is no explicit mesh."""
  sharding: Any = jax.typeof(x).sharding
  return None if sharding.mesh.empty or not sharding.mesh.are_all_axes_explicit else sharding.spec


def parts_of(x: jax.Array, axis: int) -> int:
  """Returns into how many parts an axis is cut."""
  spec = spec_of(x)
  if spec is None:
    return 1
  shape, parts = jax.typeof(x).sharding.mesh.shape, 1
  for name in _names(spec[axis]):
    parts *= shape[name]
  return parts


def gathered(w: jax.Array, x: jax.Array) -> jax.Array:
  """Returns `w`, whole over the mesh axes that the leading axes of `x` (all but the last) are spread over."""
  spec, rows = spec_of(w), spec_of(x)
  if spec is None or rows is None:
    return w
  taken = {name for part in rows[:-1] for name in _names(part)}
  left = PartitionSpec(*(tuple(name for name in _names(part) if name not in taken) or None for part in spec))
  return jax.sharding.reshard(w, left)


def product(x_MI: jax.Array, w_IO: jax.Array) -> jax.Array:
  """Returns y_MO = x w; x may have any number of leading axes, which stay where they are."""
  w_IO = gathered(w_IO, x_MI)
  spec, rows = spec_of(w_IO), spec_of(x_MI)
  out = None if spec is None or rows is None else PartitionSpec(*rows[:-1], spec[-1])
  return jnp.einsum("...I,IO->...O", x_MI, w_IO, out_sharding=out)


def product_with_rows(x_MI: jax.Array, w_OI: jax.Array) -> jax.Array:
  """Returns y_MO = x w^T, as `product` does, computed with O first.

  The more exact of a CPU's two libraries takes ten times as long where the second operand is transposed and wide, of
  which the barrier keeps XLA from making this. The transposition that is left is of the small result.
  """
  w_OI = gathered(w_OI, x_MI)
  spec, rows = spec_of(w_OI), spec_of(x_MI)
  out = None if spec is None or rows is None else PartitionSpec(spec[0], *rows[:-1])
  y_OM = jnp.einsum("OI,...I->O...", w_OI, x_MI, out_sharding=out)
  return jnp.moveaxis(jax.lax.optimization_barrier(y_OM), 0, -1)


def lookup(table_VD: jax.Array, ids_M: jax.Array) -> jax.Array:
  """Returns the table's rows of the given ids (any shape), spread as the ids are."""
  rows = spec_of(ids_M)
  if rows is None or spec_of(table_VD) is None:
    return table_VD[ids_M]
  table_VD = gathered(table_VD, ids_M[..., None])
  return table_VD.at[ids_M].get(out_sharding=PartitionSpec(*rows, None))


def placed(function: Callable[..., jax.Array], spec: PartitionSpec | None, *arguments: Any) -> jax.Array:
  """Returns the function's result, spread as `spec` says; inside, the compiler decides what lies where."""
  if spec is None:
    return function(*arguments)
  free: Any = jax.sharding.auto_axes(function, out_sharding=spec)
  return free(*arguments)


def merged(x: jax.Array, kept: int) -> jax.Array:
  """Returns x with all axes but the last `kept` made one; each device merges what it has, in its own order."""
  spec, lead = spec_of(x), x.ndim - kept
  if spec is None or not any(spec[1:lead]):
    return x.reshape(-1, *x.shape[lead:])
  names = tuple(name for part in spec[:lead] for name in _names(part))
  local = jax.shard_map(
    lambda a: a.reshape(-1, *a.shape[lead:]), in_specs=spec, out_specs=PartitionSpec(names, *spec[lead:])
  )
  return local(x)


def parted(y: jax.Array, x: jax.Array, kept: int) -> jax.Array:
  """Undoes `merged(x, kept)` for an array y that was made of its result; what follows y's first axis stays."""
  spec, lead = spec_of(x), x.ndim - kept
  if spec is None or not any(spec[1:lead]):
    return y.reshape(*x.shape[:lead], *y.shape[1:])
  sizes = [x.shape[axis] // parts_of(x, axis) for axis in range(lead)]
  there: Any = spec_of(y)
  local = jax.shard_map(
    lambda a: a.reshape(*sizes, *a.shape[1:]), in_specs=there, out_specs=PartitionSpec(*spec[:lead], *there[1:])
  )
  return local(y)


def striped(a_BT: jax.Array, parts: int) -> jax.Array:
  """Returns the positions in an order in which every `parts`-th one lies together, see above; other axes stay."""
  rows, length, *others = a_BT.shape
  return a_BT.reshape(rows, length // parts, parts, *others).swapaxes(1, 2).reshape(a_BT.shape)


def _names(part: Any) -> tuple[str, ...]:
  return () if part is None else (part,) if isinstance(part, str) else tuple(part)
