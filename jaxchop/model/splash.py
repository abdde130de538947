"""Causal attention by splash attention, JAX's Pallas kernel for TPUs, whose scores never leave the core.

Shapes: B batch, T queries, S keys, N query heads, K key/value heads, H head width. T and S are filled up to what the
kernel takes: keys at the end, which no query sees, and queries, which are cut off again.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel, splash_attention_mask

# Of queries and keys the kernel takes multiples of this many, the lanes of a vector register.
_LANES = 128


def splash(
  q_BTNH: jax.Array,
  k_BSKH: jax.Array,
  v_BSKH: jax.Array,
  parts_BS: jax.Array | None = None,
  stripe: jax.Array | None = None,
  *,
  block: int,
  name: str,
  interpret: bool = False,
) -> jax.Array:
  """Returns the attended values [B, T, N, H]; a query sees the keys up to its own position that are of its own part.

  Where S is several times T, the queries are one `stripe` of those of all keys: every S / T-th one. What the backward
  pass needs again bears `name` for jax.checkpoint. Blocks have at most `block` queries and keys. `interpret` runs the
  kernel anywhere, slowly.
  """
  T, S, H = q_BTNH.shape[1], k_BSKH.shape[1], q_BTNH.shape[-1]
  stripes = S // T
  place_T = jnp.arange(T) if stripe is None else jnp.arange(T) * stripes + stripe
  kernel = _kernel(_filled(T), _filled(S), stripes, q_BTNH.shape[2], block, name, interpret)
  kernel = _of_stripe(kernel, stripe, stripes)
  # The kernel does not scale.
  q, k, v = (_rows_last(a) for a in (q_BTNH * H**-0.5, k_BSKH, v_BSKH))
  if parts_BS is None:
    y_BNTH = jax.vmap(kernel)(q, k, v)
  else:
    parts_BT = parts_BS if stripe is None else parts_BS[:, place_T]
    ids = splash_attention_kernel.SegmentIds(q=_fill(parts_BT), kv=_fill(parts_BS))
    y_BNTH = jax.vmap(kernel)(q, k, v, ids)
  return y_BNTH[:, :, :T].swapaxes(1, 2)


def _filled(length: int) -> int:
  return -(-length // _LANES) * _LANES


def _fill(a_BT: jax.Array) -> jax.Array:
  others = [(0, 0)] * (a_BT.ndim - 2)
  return jnp.pad(a_BT, [(0, 0), (0, _filled(a_BT.shape[1]) - a_BT.shape[1]), *others])


def _rows_last(a_BTNH: jax.Array) -> jax.Array:
  return _fill(a_BTNH).swapaxes(1, 2)


def _kernel(T: int, S: int, stripes: int, heads: int, block: int, name: str, interpret: bool) -> Any:
  q, kv = (max(n for n in range(_LANES, block + 1, _LANES) if length % n == 0) for length in (T, S))
  sizes = splash_attention_kernel.BlockSizes(
    block_q=q, block_q_dkv=q, block_q_dq=q, block_kv=kv, block_kv_dkv=kv, block_kv_dq=kv
  )
  return splash_attention_kernel.make_splash_mha(
    _mask(T, S, stripes, heads),
    block_sizes=sizes,
    head_shards=1,
    q_seq_shards=stripes,
    residual_checkpoint_name=name,
    interpret=interpret,
  )


@functools.cache
def _mask(T: int, S: int, stripes: int, heads: int) -> splash_attention_mask.MultiHeadMask:
  """One mask for all layers, or the kernel would be traced and compiled for each."""
  mask = splash_attention_mask.CausalMask((T * stripes, S))
  mask.q_sequence = np.arange(T * stripes, dtype=np.int32).reshape(T, stripes).T.reshape(-1)
  return splash_attention_mask.MultiHeadMask([mask] * heads)


def _of_stripe(kernel: Any, stripe: jax.Array | None, stripes: int) -> Any:
  """Returns the kernel with the part of its tables, by blocks and by queries, that is of one stripe of queries."""
  if stripe is None:
    return kernel

  def part(table: jax.Array) -> jax.Array:
    axis = 1 if table.ndim == 3 else 0
    size = table.shape[axis] // stripes
    return jax.lax.dynamic_slice_in_dim(table, stripe * size, size, axis)

  return jax.tree.map(part, kernel)
