"""Products into and out of heads that move as little memory as a TPU lets them.

There an array lies in tiles of 8 rows and 128 columns. A reshape from columns to heads would lay it out in tiles of
heads, and what follows, which works on positions, in tiles of positions again. So columns are cut where eights of
positions are, and the tiles themselves are all that moves; and a product sums over heads as they lie, unjoined, of
which the compiler makes the same product.
Shapes: B batch, T positions, E = T / 8, I inputs, O outputs, N heads, H head width.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jaxchop.model.placement import merged, parted, parts_of, product, spec_of, whole
from jaxchop.model.scatter import scattered
from jaxchop.target import target

_ROWS = 8


def in_tiles(x: jax.Array) -> bool:
  """Returns whether an array whose second axis is positions lies on a TPU, in whole tiles on one device."""
  return target().platform == "tpu" and x.shape[1] % _ROWS == 0 and parts_of(x, 1) == 1


def split_heads(y_BTO: jax.Array, head_dim: int) -> jax.Array:
  """Returns y_BTNH."""
  B, T, wide = y_BTO.shape
  if not in_tiles(y_BTO):
    return y_BTO.reshape(B, T, -1, head_dim)
  # One axis at a time: of a spread array no more than that is known.
  y_BE8NH = y_BTO.reshape(B, T // _ROWS, _ROWS, wide).reshape(B, T // _ROWS, _ROWS, -1, head_dim)
  return y_BE8NH.transpose(0, 3, 1, 2, 4).reshape(B, -1, T, head_dim).swapaxes(1, 2)


def join_heads(y_BTNH: jax.Array) -> jax.Array:
  """Returns y_BTO, the inverse of `split_heads`."""
  B, T, N, H = y_BTNH.shape
  if not in_tiles(y_BTNH):
    return y_BTNH.reshape(B, T, N * H)
  y_BE8NH = y_BTNH.swapaxes(1, 2).reshape(B, N, T // _ROWS, _ROWS, H).transpose(0, 2, 3, 1, 4)
  return y_BE8NH.reshape(B, T // _ROWS, _ROWS, N * H).reshape(B, T, N * H)


def product_to_heads(x_BTI: jax.Array, w_IO: jax.Array, head_dim: int) -> jax.Array:
  """Returns y_BTNH = x w, whose gradients are products with heads as they lie."""
  return _to_heads(head_dim, spec_of(w_IO), spec_of(x_BTI), x_BTI, w_IO)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _to_heads(head_dim: int, spec: Any, rows: Any, x_BTI: jax.Array, w_IO: jax.Array) -> jax.Array:
  """`spec` is that of the kernel, `rows` that of x: their gradients are to have the same. None without a mesh."""
  return split_heads(parted(product(merged(x_BTI, 1), w_IO), x_BTI, 1), head_dim)


def _to_heads_forward(head_dim, spec, rows, x, w):
  # What gets no gradient is not kept for it.
  kept = x.value if w.perturbed else None, whole(w.value, rows) if x.perturbed else None
  return _to_heads(head_dim, spec, rows, x.value, w.value), kept


def _to_heads_backward(head_dim, spec, rows, kept, slope_BTNH):
  x_BTI, w_IO = kept
  grad_BTI = grad_IO = None
  if w_IO is not None:
    w_INH = w_IO.reshape(len(w_IO), w_IO.shape[1] // head_dim, head_dim)
    grad_BTI = jnp.einsum("BTNH,INH->BTI", slope_BTNH, w_INH, out_sharding=rows)
  if x_BTI is not None:
    grad_IO = _kernel_gradient("BTI,BTNH->INH", x_BTI, slope_BTNH, spec, rows)
  return grad_BTI, grad_IO


_to_heads.defvjp(_to_heads_forward, _to_heads_backward, symbolic_zeros=True)


def product_of_heads(y_BTNH: jax.Array, w_IO: jax.Array) -> jax.Array:
  """Returns y_BTO = y w with I = N * H: heads go in as they lie, and are not joined in memory."""
  rows = spec_of(y_BTNH)
  return _of_heads(spec_of(w_IO), None if rows is None else PartitionSpec(*rows[:3]), y_BTNH, w_IO)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _of_heads(spec: Any, rows: Any, y_BTNH: jax.Array, w_IO: jax.Array) -> jax.Array:
  """`spec` is that of the kernel, `rows` that of y if its heads were joined. None without a mesh."""
  w_NHO = _in_heads(whole(w_IO, rows), y_BTNH)
  out = None if rows is None else PartitionSpec(*rows[:-1], _spec(w_NHO)[-1])
  return jnp.einsum("BTNH,NHO->BTO", y_BTNH, w_NHO, out_sharding=out)


def _of_heads_forward(spec, rows, y, w):
  kept = y.value if w.perturbed else None, _in_heads(whole(w.value, rows), y.value) if y.perturbed else None
  return _of_heads(spec, rows, y.value, w.value), kept


def _of_heads_backward(spec, rows, kept, slope_BTO):
  y_BTNH, w_NHO = kept
  there = None if rows is None else PartitionSpec(*rows, None)
  grad_BTNH = grad_IO = None
  if w_NHO is not None:
    grad_BTNH = jnp.einsum("BTO,NHO->BTNH", slope_BTO, w_NHO, out_sharding=there)
  if y_BTNH is not None:
    grad_IO = _kernel_gradient("BTNH,BTO->NHO", y_BTNH, slope_BTO, spec, rows)
  return grad_BTNH, grad_IO


_of_heads.defvjp(_of_heads_forward, _of_heads_backward, symbolic_zeros=True)


def _kernel_gradient(letters: str, a: jax.Array, b: jax.Array, spec: Any, rows: Any) -> jax.Array:
  """Returns a kernel's gradient, its two axes of heads joined and summed over devices."""

  def of_a_device(a: jax.Array, b: jax.Array) -> jax.Array:
    grad = jnp.einsum(letters, a, b)
    return grad.reshape(len(grad), -1) if letters.endswith("NH") else grad.reshape(-1, grad.shape[-1])

  if spec is None:
    return of_a_device(a, b)

  def on_a_device(a: jax.Array, b: jax.Array) -> jax.Array:
    return scattered(of_a_device(a, b), spec, rows)

  local = jax.shard_map(on_a_device, in_specs=(_spec(a), _spec(b)), out_specs=spec, check_vma=False)
  return local(a, b)


def _in_heads(w_IO: jax.Array, y_BTNH: jax.Array) -> jax.Array:
  return w_IO.reshape(*y_BTNH.shape[2:], w_IO.shape[1])


def _spec(x: jax.Array) -> PartitionSpec:
  spec = spec_of(x)
  assert spec is not None
  return spec
