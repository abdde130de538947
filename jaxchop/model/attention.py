"""Grouped-query attention over what came before: of whole sequences, and of one new token over a cache.

Shapes: B batch, T sequence, S cache slots, N query heads, K key/value heads, G = N / K query heads of one key/value
head, H head width. Scores, and the softmax over them, are float32.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jaxchop.model.placement import spec_of

# A sequence is cut into blocks of at least this many queries, and into at most _BLOCKS of them.
_BLOCK = 128
_BLOCKS = 8
_HIDDEN = -1e30


def causal_attention(
  q_BTNH: jax.Array,
  k_BTKH: jax.Array,
  v_BTKH: jax.Array,
  first_B: jax.Array | None = None,
  segments_BT: jax.Array | None = None,
) -> jax.Array:
  """Returns the attended values [B, T, N, H] of whole sequences; position t sees first_B..t, or 0..t without it.

  With segments, in the sequence's own order, it sees of these only positions of its own segment.

  Queries go in blocks, so that the half of the scores which no query sees is mostly not computed. A block keeps nothing
  for its backward pass but its inputs: [T, T] scores would be most of a training step's memory.

  Where the sequence is spread over devices, each gathers all keys and values for its own queries (Llama 3, arXiv
  2407.21783, section 3.3.2). As these are every so many-th position, see placement.py, all devices have the same work
  (striped attention, arXiv 2311.09431).
  """
  spec = spec_of(q_BTNH)
  if spec is None or spec[1] is None:
    return _attended(q_BTNH, k_BTKH, v_BTKH, first_B, segments_BT)
  axis = spec[1]

  def on_a_device(q_BTNH, k_BTKH, v_BTKH, first_B, segments_BS):
    keys, values = _all_stripes(k_BTKH, axis), _all_stripes(v_BTKH, axis)
    return _attended(q_BTNH, keys, values, first_B, segments_BS, jax.lax.axis_size(axis), jax.lax.axis_index(axis))

  specs = spec, spec_of(k_BTKH), spec_of(v_BTKH), PartitionSpec(spec[0]), PartitionSpec(spec[0], None)
  return jax.shard_map(on_a_device, in_specs=specs, out_specs=spec)(q_BTNH, k_BTKH, v_BTKH, first_B, segments_BT)


def _all_stripes(a_BTKH: jax.Array, axis: Any) -> jax.Array:
  """Returns what all devices hold, in the sequence's own order: at each place of a stripe, that of every stripe."""
  a_BTCKH = jax.lax.all_gather(a_BTKH, axis, axis=2)
  return a_BTCKH.reshape(len(a_BTCKH), -1, *a_BTCKH.shape[3:])


def _attended(
  q_BTNH, k_BSKH, v_BSKH, first_B, segments_BS, stripes: int = 1, stripe: jax.Array | None = None
) -> jax.Array:
  """Returns the attended values of one of several stripes of queries, or of all, over all keys."""
  length = q_BTNH.shape[1]
  size = max(_BLOCK, math.ceil(length / _BLOCKS))
  blocks = [(start, min(start + size, length), stripes) for start in range(0, length, size)]
  return jnp.concatenate([_block(*at, q_BTNH, k_BSKH, v_BSKH, first_B, segments_BS, stripe) for at in blocks], axis=1)


@functools.partial(jax.checkpoint, static_argnums=(0, 1, 2))
def _block(start: int, end: int, stripes: int, q_BTNH, k_BSKH, v_BSKH, first_B, segments_BS, stripe) -> jax.Array:
  """Returns the attended values of queries start..end of a stripe, which see no key beyond S = end * stripes."""
  B, _, N, H = q_BTNH.shape
  T, S, K = end - start, end * stripes, k_BSKH.shape[2]
  q_BKGTH = q_BTNH[:, start:end].reshape(B, T, K, -1, H).transpose(0, 2, 3, 1, 4)
  k_BKHS = k_BSKH[:, :S].transpose(0, 2, 3, 1)
  v_BKSH = v_BSKH[:, :S].transpose(0, 2, 1, 3)
  slot_S = jnp.arange(S)
  place_T = jnp.arange(start, end) if stripe is None else jnp.arange(start, end) * stripes + stripe
  visible_BTS = (slot_S <= place_T[:, None])[None]
  if first_B is not None:
    visible_BTS = visible_BTS & (slot_S >= first_B[:, None, None])
  if segments_BS is not None:
    own_BT = segments_BS[:, start:end] if stripe is None else segments_BS[:, place_T]
    visible_BTS = visible_BTS & (own_BT[:, :, None] == segments_BS[:, None, :S])
  # One product for all queries of a key/value head: M = G * T.
  score_BKMS = _product("BKMH,BKHS->BKMS", q_BKGTH.reshape(B, K, -1, H), k_BKHS)
  score_BKGTS = score_BKMS.reshape(B, K, -1, T, S)
  weight_BKGTS, total_BKGT = _softmax(score_BKGTS, visible_BTS[:, None, None], H)
  weight_BKMS = weight_BKGTS.reshape(B, K, -1, S).astype(v_BSKH.dtype)
  y_BKGTH = _product("BKMS,BKSH->BKMH", weight_BKMS, v_BKSH).reshape(B, K, -1, T, H) / total_BKGT[..., None]
  return y_BKGTH.astype(q_BTNH.dtype).transpose(0, 3, 1, 2, 4).reshape(B, T, N, H)


def cached_attention(
  q_BNH: jax.Array, k_BKHS: jax.Array, v_BKSH: jax.Array, first_B: jax.Array, last: jax.Array
) -> jax.Array:
  """Returns the attended values [B, N, H] of one query a row, which sees the slots first_B..last.

  The cache lies as the two products read it: any other order would be copied at every token.
  """
  B, N, H = q_BNH.shape
  slot_S = jnp.arange(k_BKHS.shape[-1])
  visible_BS = (slot_S >= first_B[:, None]) & (slot_S <= last)
  score_BKGS = _product("BKGH,BKHS->BKGS", q_BNH.reshape(B, k_BKHS.shape[1], -1, H), k_BKHS)
  weight_BKGS, total_BKG = _softmax(score_BKGS, visible_BS[:, None, None], H)
  y_BKGH = _product("BKGS,BKSH->BKGH", weight_BKGS.astype(v_BKSH.dtype), v_BKSH) / total_BKG[..., None]
  return y_BKGH.astype(q_BNH.dtype).reshape(B, N, H)


def _product(letters: str, a: jax.Array, b: jax.Array) -> jax.Array:
  return jnp.einsum(letters, a, b, preferred_element_type=jnp.float32)


def _softmax(score: jax.Array, visible: jax.Array, head_dim: int) -> tuple[jax.Array, jax.Array]:
  """Returns a softmax over the last axis as weights and the total that they are still to be divided by."""
  score = jnp.where(visible, score * head_dim**-0.5, _HIDDEN)
  weight = jnp.exp(score - jax.lax.stop_gradient(score.max(axis=-1, keepdims=True)))
  return weight, weight.sum(axis=-1)


def kernel() -> str:
  """Returns what computes the attention of whole sequences here, in a few words."""
  return "XLA in blocks of queries"
