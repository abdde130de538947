"""Products of arrays that may be spread over devices, without a word about which devices those are.

Under a mesh with explicit axes an array's type says along which of them it is spread. A kernel is gathered over the
mesh axes that the rows are spread over, just where it is used: a device holds the whole of one kernel at a time, and
the kernel's gradient goes back to where its parts lie. Without a mesh these are plain products.
A sequence that is spread over devices lies on them in stripes: the first of c devices has the positions 0, c, 2c, …
Shapes: M rows, I axis summed over, O output axis, V table rows, D table width, B batch, T sequence.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jaxchop.model.exchange import all_rows, to_columns, to_rows
from jaxchop.model.scatter import names_of, scattered
from jaxchop.target import on_cpu


def spec_of(x: jax.Array) -> PartitionSpec | None:
  """Returns along which mesh axes each axis of an array is spread; None where there is no explicit mesh."""
  sharding: Any = jax.typeof(x).sharding
  return None if sharding.mesh.empty or not sharding.mesh.are_all_axes_explicit else sharding.spec


def exact_product(letters: str, a: jax.Array, b: jax.Array, place: PartitionSpec | None = None) -> jax.Array:
  """Returns an einsum that is summed in float32 and keeps that dtype, spread over devices as `place` says."""
  if on_cpu() and not jax.sharding.get_abstract_mesh().empty:
    # XLA's default library there, see compiler.py, has no product of bfloat16 with such a result for some shapes. The
    # values are the same: a product of two numbers of bfloat16 is one of float32.
    a, b = a.astype(jnp.float32), b.astype(jnp.float32)
  return jnp.einsum(letters, a, b, preferred_element_type=jnp.float32, out_sharding=place)


def parts_of(x: jax.Array, axis: int) -> int:
  """Returns into how many parts an axis is cut."""
  spec = spec_of(x)
  if spec is None:
    return 1
  shape, parts = jax.typeof(x).sharding.mesh.shape, 1
  for name in names_of(spec[axis]):
    parts *= shape[name]
  return parts


def gathered(w: jax.Array, x: jax.Array) -> jax.Array:
  """Returns `w`, whole over the mesh axes that the leading axes of `x` (all but the last) are spread over."""
  rows = spec_of(x)
  return w if rows is None else whole(w, rows)


def whole(w: jax.Array, rows: PartitionSpec) -> jax.Array:
  """Returns what `gathered` does, given along which mesh axes those axes are spread."""
  if (spec := spec_of(w)) is None:
    return w
  taken = {name for part in rows[:-1] for name in names_of(part)}
  left = PartitionSpec(*(tuple(name for name in names_of(part) if name not in taken) or None for part in spec))
  return jax.sharding.reshard(w, left)


def product(x_MI: jax.Array, w_IO: jax.Array) -> jax.Array:
  """Returns y_MO = x w; x may have any number of leading axes, which stay where they are."""
  spec, rows = spec_of(w_IO), spec_of(x_MI)
  if spec is None or rows is None:
    return jnp.einsum("...I,IO->...O", x_MI, w_IO)
  return _product(spec, rows, x_MI, w_IO)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _product(spec: PartitionSpec, rows: PartitionSpec, x_MI: jax.Array, w_IO: jax.Array) -> jax.Array:
  """`spec` is that of the kernel, `rows` that of x: their gradients are to have the same."""
  w_IO = gathered(w_IO, x_MI)
  return jnp.einsum("...I,IO->...O", x_MI, w_IO, out_sharding=PartitionSpec(*rows[:-1], _spec(w_IO)[-1]))


def _product_forward(spec, rows, x, w):
  w_IO = gathered(w.value, x.value)
  # What gets no gradient is not kept for it.
  return _product(spec, rows, x.value, w_IO), (x.value if w.perturbed else None, w_IO if x.perturbed else None)


def _product_backward(spec, rows, kept, slope_MO):
  x_MI, w_IO = kept
  grad_MI = None if w_IO is None else jnp.einsum("...O,IO->...I", slope_MO, w_IO, out_sharding=rows)
  if x_MI is None:
    return grad_MI, None

  def on_a_device(x_MI: jax.Array, slope_MO: jax.Array) -> jax.Array:
    return scattered(jnp.einsum("...I,...O->IO", x_MI, slope_MO), spec, rows)

  local = jax.shard_map(on_a_device, in_specs=(rows, _spec(slope_MO)), out_specs=spec, check_vma=False)
  return grad_MI, local(x_MI, slope_MO)


_product.defvjp(_product_forward, _product_backward, symbolic_zeros=True)


def _spec(x: jax.Array) -> PartitionSpec:
  spec = spec_of(x)
  assert spec is not None
  return spec


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
  spec, rows = spec_of(table_VD), spec_of(ids_M)
  if rows is None or spec is None:
    return table_VD[ids_M]
  there = {name for part in rows for name in names_of(part)}
  if spec[0] or not there.issuperset(names_of(spec[1])):
    # A table whose rows are spread, or whose columns are over other devices, is the compiler's to sum up.
    table_VD = gathered(table_VD, ids_M[..., None])
    return table_VD.at[ids_M].get(out_sharding=PartitionSpec(*rows, None))
  return _lookup(spec, len(table_VD), table_VD, ids_M)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _lookup(spec: PartitionSpec, size: int, table_VD: jax.Array, ids_M: jax.Array) -> jax.Array:
  """`spec` is that of the table, which its gradient is to have; `size` is the number of its rows.

  No table is gathered: a device looks up its own columns for all tokens, and sends each device those of its tokens.
  """
  rows, names = _spec(ids_M), names_of(spec[1])

  def on_a_device(table_VD: jax.Array, ids_M: jax.Array) -> jax.Array:
    return to_rows(table_VD[all_rows(ids_M, names, rows)], names, rows)

  there = PartitionSpec(*rows, None)
  return jax.shard_map(on_a_device, in_specs=(spec, rows), out_specs=there, check_vma=False)(table_VD, ids_M)


def _lookup_forward(spec, size, table_VD, ids_M):
  return _lookup(spec, size, table_VD, ids_M), ids_M


def _lookup_backward(spec, size, ids_M, slope_MD):
  rows, names = _spec(ids_M), names_of(spec[1])

  def on_a_device(ids_M: jax.Array, slope_MD: jax.Array) -> jax.Array:
    slope_MD = to_columns(slope_MD, names, rows)
    # Half of the tokens of a text are a few dozen words: in bfloat16 their sums would stand still.
    zeros_VD = jnp.zeros((size, slope_MD.shape[-1]), jnp.float32)
    grad_VD = zeros_VD.at[all_rows(ids_M, names, rows)].add(slope_MD.astype(jnp.float32))
    return scattered(grad_VD.astype(slope_MD.dtype), PartitionSpec(None, None), over_copies)

  there = PartitionSpec(*rows, None)
  over_copies = PartitionSpec(tuple(name for part in rows for name in names_of(part) if name not in names), None)
  local = jax.shard_map(on_a_device, in_specs=(rows, there), out_specs=spec, check_vma=False)
  return local(ids_M, slope_MD), None


_lookup.defvjp(_lookup_forward, _lookup_backward)


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
  names = tuple(name for part in spec[:lead] for name in names_of(part))
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
