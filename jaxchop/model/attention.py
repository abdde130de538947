"""Grouped-query attention over what came before: of whole sequences, and of new tokens over a cache.

Shapes: B batch, T sequence, S cache slots, N query heads, K key/value heads, G = N / K query heads of one key/value
head, M = G * T, R = B * K, H head width. Scores, and the softmax over them, are float32.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec

from jaxchop.model.kernel import chosen, tell
from jaxchop.model.placement import exact_product, merged, parted, spec_of
from jaxchop.model.scatter import side_by_side
from jaxchop.model.splash import splash
from jaxchop.target import target

# The results of matrix products bear this name. The rest is cheap to compute again, and reading it back from memory
# would cost more than that.
PRODUCT = "product"

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

  With segments, in the sequence's own order, it sees of these only positions of its own segment. What computes it is
  said by kernel.py; on its result, or on what makes it, stands the name PRODUCT.

  Where the sequence is spread over devices, each gathers all keys and values for its own queries (Llama 3, arXiv
  2407.21783, section 3.3.2). As these are every so many-th position, see placement.py, all devices have the same work
  (striped attention, arXiv 2311.09431).
  """
  spec, parted = spec_of(q_BTNH), first_B is not None or segments_BT is not None
  axis = None if spec is None else spec[1]
  kernel = chosen(target(), q_BTNH.dtype, q_BTNH.shape[-1], parted=parted, spread=axis is not None)
  tell(kernel)
  by_name = {"splash": functools.partial(_by_splash, kernel.block), "cudnn": _by_cudnn, "blocks": _attended}
  attend: Callable[..., jax.Array] = by_name[kernel.name]
  if spec is None or (axis is None and kernel.name == "blocks"):
    return attend(q_BTNH, k_BTKH, v_BTKH, first_B, segments_BT)

  def on_a_device(q_BTNH, k_BTKH, v_BTKH, first_B, segments_BS):
    if axis is None:
      return attend(q_BTNH, k_BTKH, v_BTKH, first_B, segments_BS)
    keys, values = _all_stripes(k_BTKH, axis), _all_stripes(v_BTKH, axis)
    return attend(q_BTNH, keys, values, first_B, segments_BS, jax.lax.axis_size(axis), jax.lax.axis_index(axis))

  specs = spec, spec_of(k_BTKH), spec_of(v_BTKH), PartitionSpec(spec[0]), PartitionSpec(spec[0], None)
  # The kernels do not say over which axes their results differ.
  over = jax.shard_map(on_a_device, in_specs=specs, out_specs=spec, check_vma=kernel.name == "blocks")
  return over(q_BTNH, k_BTKH, v_BTKH, first_B, segments_BT)


def _by_splash(block: int, q_BTNH, k_BSKH, v_BSKH, first_B, segments_BS, stripes: int = 1, stripe=None) -> jax.Array:
  """Padding before the first position is a part of its own."""
  parts_BS = segments_BS
  if first_B is not None:
    before_BS = jnp.arange(k_BSKH.shape[1]) < first_B[:, None]
    parts_BS = jnp.where(before_BS, -1, 0 if segments_BS is None else segments_BS)
  return splash(q_BTNH, k_BSKH, v_BSKH, parts_BS, stripe, block=block, name=PRODUCT)


def _by_cudnn(q_BTNH, k_BSKH, v_BSKH, first_B, segments_BS) -> jax.Array:
  assert first_B is None and segments_BS is None
  y_BTNH = jax.nn.dot_product_attention(q_BTNH, k_BSKH, v_BSKH, is_causal=True, implementation="cudnn")
  return checkpoint_name(y_BTNH, PRODUCT)


def _all_stripes(a_BTKH: jax.Array, axis: Any) -> jax.Array:
  """Returns what all devices hold, in the sequence's own order: at each place of a stripe, that of every stripe."""
  a_BTCKH = side_by_side(a_BTKH, axis, 2)
  return a_BTCKH.reshape(len(a_BTCKH), -1, *a_BTCKH.shape[3:])


def _attended(
  q_BTNH, k_BSKH, v_BSKH, first_B, segments_BS, stripes: int = 1, stripe: jax.Array | None = None
) -> jax.Array:
  """Returns the attended values of one of several stripes of queries, or of all, over all keys.

  Queries go in blocks, so that the half of the scores which no query sees is mostly not computed. A block keeps nothing
  for its backward pass but its inputs: [T, T] scores would be most of a training step's memory.
  """
  B, length, N, H = q_BTNH.shape
  size = max(_BLOCK, math.ceil(length / _BLOCKS))
  blocks = [(start, min(start + size, length), stripes) for start in range(0, length, size)]
  q_BKHGT = q_BTNH.reshape(B, length, k_BSKH.shape[2], -1, H).transpose(0, 2, 4, 3, 1)
  k_BKSH, v_BKSH = k_BSKH.transpose(0, 2, 1, 3), v_BSKH.transpose(0, 2, 1, 3)
  ys = [_block(*at, q_BKHGT, k_BKSH, v_BKSH, first_B, segments_BS, stripe) for at in blocks]
  y_BTNH = jnp.concatenate(ys, axis=-1).transpose(0, 4, 1, 3, 2).reshape(B, length, N, H)
  return checkpoint_name(y_BTNH, PRODUCT)


@functools.partial(jax.checkpoint, static_argnums=(0, 1, 2))
def _block(start: int, end: int, stripes: int, q_BKHGT, k_BKSH, v_BKSH, first_B, segments_BS, stripe) -> jax.Array:
  """Returns y_BKHGT of queries start..end of a stripe, which see no key beyond S = end * stripes.

  All queries of a key/value head are one product: M = G * T. Keys come first in the scores: on one core of a CPU
  attention, forward and backward, takes 7 % less time so.
  """
  B, K, H = q_BKHGT.shape[:3]
  T, S = end - start, end * stripes
  slot_S1 = jnp.arange(S)[:, None]
  place_T = jnp.arange(start, end) if stripe is None else jnp.arange(start, end) * stripes + stripe
  visible_BST = (slot_S1 <= place_T)[None]
  if first_B is not None:
    visible_BST = visible_BST & (slot_S1 >= first_B[:, None, None])
  if segments_BS is not None:
    own_BT = segments_BS[:, start:end] if stripe is None else segments_BS[:, place_T]
    visible_BST = visible_BST & (segments_BS[:, :S, None] == own_BT[:, None])
  q_BKHM = q_BKHGT[..., start:end].reshape(B, K, H, -1)
  score_BKSM = exact_product("BKSH,BKHM->BKSM", k_BKSH[:, :, :S], q_BKHM)
  score_BKSGT = score_BKSM.reshape(B, K, S, -1, T)
  weight_BKSGT, total_BKGT = _softmax(score_BKSGT, visible_BST[:, None, :, None], H, axis=2)
  weight_BKSM = weight_BKSGT.reshape(B, K, S, -1).astype(v_BKSH.dtype)
  y_BKHM = exact_product("BKSH,BKSM->BKHM", v_BKSH[:, :, :S], weight_BKSM)
  return (y_BKHM.reshape(B, K, H, -1, T) / total_BKGT[:, :, None]).astype(q_BKHGT.dtype)


def cached_attention(
  q_BTNH: jax.Array, k_RHS: jax.Array, v_RSH: jax.Array, first_B: jax.Array, written: jax.Array
) -> jax.Array:
  """Returns the attended values [B, T, N, H] of a row's newest queries; query t sees the slots first_B..written + t.

  The cache lies as the two products read it: any other order would be copied at every token. So would rows and heads
  on axes of their own at batch 1, where XLA takes the axis of length 1 away together with the update that is behind it.
  """
  B, T, N, H = q_BTNH.shape
  K = len(k_RHS) // B
  slot_S = jnp.arange(k_RHS.shape[-1])
  visible_BTS = (slot_S >= first_B[:, None, None]) & (slot_S <= written + jnp.arange(T)[:, None])
  q_BKMH = q_BTNH.reshape(B, T, K, -1, H).transpose(0, 2, 3, 1, 4).reshape(B, K, -1, H)
  score_BKMS = parted(exact_product("RMH,RHS->RMS", merged(q_BKMH, 2), k_RHS), q_BKMH, 2)
  score_BKGTS = score_BKMS.reshape(B, K, -1, T, len(slot_S))
  weight_BKGTS, total_BKGT = _softmax(score_BKGTS, visible_BTS[:, None, None], H, axis=-1)
  weight_BKMS = weight_BKGTS.reshape(score_BKMS.shape).astype(v_RSH.dtype)
  y_BKMH = parted(exact_product("RMS,RSH->RMH", merged(weight_BKMS, 2), v_RSH), q_BKMH, 2)
  y_BKGTH = (y_BKMH / total_BKGT.reshape(B, K, -1, 1)).astype(q_BTNH.dtype).reshape(B, K, -1, T, H)
  return y_BKGTH.transpose(0, 3, 1, 2, 4).reshape(B, T, N, H)


def _softmax(score: jax.Array, visible: jax.Array, head_dim: int, axis: int) -> tuple[jax.Array, jax.Array]:
  """Returns a softmax over the keys' axis as weights and the total that they are still to be divided by."""
  score = jnp.where(visible, score * head_dim**-0.5, _HIDDEN)
  weight = jnp.exp(score - jax.lax.stop_gradient(score.max(axis=axis, keepdims=True)))
  return weight, weight.sum(axis=axis)
