"""A projection's outputs as heads, and back: one move of memory on a TPU instead of two.

There an array lies in tiles of 8 rows and 128 columns. A reshape from columns to heads would lay it out in tiles of
heads, and what follows, which works on positions, in tiles of positions again; cut into eights of positions first, the
tiles themselves are all that moves.
Shapes: B batch, T positions, E = T / 8, O outputs, N heads, H head width.
"""

import jax

from jaxchop.model.placement import parts_of
from jaxchop.target import target

_ROWS = 8


def split_heads(y_BTO: jax.Array, head_dim: int) -> jax.Array:
  """Returns y_BTNH."""
  B, T, wide = y_BTO.shape
  if not _in_tiles(y_BTO):
    return y_BTO.reshape(B, T, -1, head_dim)
  # One axis at a time: of a spread array no more than that is known.
  y_BE8NH = y_BTO.reshape(B, T // _ROWS, _ROWS, wide).reshape(B, T // _ROWS, _ROWS, -1, head_dim)
  return y_BE8NH.transpose(0, 3, 1, 2, 4).reshape(B, -1, T, head_dim).swapaxes(1, 2)


def join_heads(y_BTNH: jax.Array) -> jax.Array:
  """Returns y_BTO, the inverse of `split_heads`."""
  B, T, N, H = y_BTNH.shape
  if not _in_tiles(y_BTNH):
    return y_BTNH.reshape(B, T, N * H)
  y_BE8NH = y_BTNH.swapaxes(1, 2).reshape(B, N, T // _ROWS, _ROWS, H).transpose(0, 2, 3, 1, 4)
  return y_BE8NH.reshape(B, T // _ROWS, _ROWS, N * H).reshape(B, T, N * H)


def _in_tiles(y: jax.Array) -> bool:
  """Returns whether an array whose second axis is positions lies on a TPU, in whole tiles on one device."""
  return target().platform == "tpu" and y.shape[1] % _ROWS == 0 and parts_of(y, 1) == 1
