"""Next-token cross-entropy in chunks: [batch, sequence, vocabulary] never exists.

A chunk takes as many tokens of every device, so that rows and positions spread over devices stay where they are; the
vocabulary may be spread too. Where no gradient is asked for, the vocabulary goes in chunks as well: logits then stay in
the cache.
Shapes: B batch, T sequence, M = B * T tokens, C those of a chunk, D width, V vocabulary in Z chunks of K tokens on each
of S devices. Losses are in nats.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jaxchop.model.placement import gathered, lookup, merged, parted, parts_of, spec_of

# Tokens whose logits a device holds at once: large enough for full matrix speed, small against the weights themselves.
CHUNK = 1024
# The same where no gradient is asked for, and of how many columns: their product takes the time of a larger one's
# matrix product alone, as its logits are still in the cache when they are summed up.
_TOKENS, _COLUMNS = 2048, 4096


def token_nll(x_BTD: jax.Array, head_DV: jax.Array, target_BT: jax.Array) -> jax.Array:
  """Returns nll_BT, the negative log-likelihood of each target in float32; `x_BTD` left the final norm."""
  whole_VD = gathered(head_DV, x_BTD).T
  w_ZSKD = _columns(whole_VD)

  def body(_: None, part: tuple[jax.Array, jax.Array]) -> tuple[None, jax.Array]:
    x_CD, target_C = part
    # A device sums up its own share of the vocabulary; only these sums travel.
    sums_ZSC = jax.lax.map(lambda w_SKD: jax.nn.logsumexp(_shared_logits(w_SKD, x_CD), axis=1), w_ZSKD)
    return None, jax.nn.logsumexp(sums_ZSC, axis=(0, 1)) - _target_logit(whole_VD, x_CD, target_C)

  x_MD, target_M = merged(x_BTD, 1), merged(target_BT, 0)
  nll_M = _joined(jax.lax.scan(body, None, (_split(x_MD, _TOKENS), _split(target_M, _TOKENS)))[1], target_M)
  return parted(nll_M, target_BT, 0)


def next_token_loss(
  x_BTD: jax.Array,
  head_DV: jax.Array,
  target_BT: jax.Array,
  weight_BT: jax.Array,
  *,
  chunk: int = CHUNK,
  z_loss: float = 0.0,
) -> jax.Array:
  """Returns the weighted sum of the targets' negative log-likelihoods, a float32 scalar; `x_BTD` left the final norm.

  Differentiable in `x_BTD` and `head_DV`. The gradient is computed beside the loss, chunk by chunk, so that logits are
  neither kept nor computed twice (the idea of Cut Cross-Entropy and Liger's fused linear cross-entropy).

  With `z_loss` the gradient is that of the losses plus z_loss * log(Z)^2 of each token, Z being the sum of its
  exponentiated logits (PaLM, arXiv 2204.02311, section 5). The value is the cross-entropy all the same: it is what is
  reported, and nobody needs the other part.
  """
  return _summed(x_BTD, head_DV, target_BT, weight_BT.astype(jnp.float32), chunk, z_loss)


@partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _summed(
  x_BTD: jax.Array, head_DV: jax.Array, target_BT: jax.Array, weight_BT: jax.Array, chunk: int, z_loss: float
) -> jax.Array:
  return jnp.sum(token_nll(x_BTD, head_DV, target_BT) * weight_BT)


def _summed_forward(x_BTD, head_DV, target_BT, weight_BT, chunk, z_loss):
  whole_VD, rows_MD = gathered(head_DV, x_BTD).T, merged(x_BTD, 1)

  def body(carry, part):
    loss, grad_VD = carry
    x_CD, target_C, weight_C = part
    logits_VC = _logits(whole_VD, x_CD)
    # One exponential serves the loss and the softmax: this pass over the vocabulary is bound by memory.
    top_C = logits_VC.max(axis=0)
    share_VC = jnp.exp(logits_VC - top_C)
    total_C = share_VC.sum(axis=0)
    log_z_C = jnp.log(total_C) + top_C
    nll_C = log_z_C - _target_logit(whole_VD, x_CD, target_C)
    pull_C = weight_C * (1 + 2 * z_loss * log_z_C) if z_loss else weight_C
    hit_VC = jax.lax.broadcasted_iota(target_C.dtype, logits_VC.shape, 0) == target_C
    slope_VC = share_VC * (pull_C / total_C) - jnp.where(hit_VC, weight_C, 0.0)
    slope_VC = slope_VC.astype(x_CD.dtype)
    grad_VD += _einsum("VC,CD->VD", slope_VC, x_CD, grad_VD)
    # Of the two orders, the faster one on one core of a CPU; on two cores there is no difference.
    grad_CD = _einsum("VD,VC->DC", whole_VD, slope_VC, x_CD.T).T
    return (loss + jnp.sum(nll_C * weight_C), grad_VD), grad_CD

  start = jnp.zeros(()), jnp.zeros_like(head_DV.T, jnp.float32)
  tokens = rows_MD, merged(target_BT, 0), merged(weight_BT, 0)
  (loss, grad_VD), grad = jax.lax.scan(body, start, tuple(_split(a_M, chunk) for a_M in tokens))
  grad_BTD = parted(_joined(grad, rows_MD), x_BTD, 1)
  return loss, (grad_BTD.astype(x_BTD.dtype), grad_VD.T.astype(head_DV.dtype))


def _summed_backward(chunk, z_loss, grads, slope):
  del chunk, z_loss
  return *(jax.tree.map(lambda g: (slope * g).astype(g.dtype), grads)), None, None


_summed.defvjp(_summed_forward, _summed_backward)


def _logits(w_VD: jax.Array, x_CD: jax.Array) -> jax.Array:
  """Returns logits_VC in float32: with the vocabulary first, XLA on a CPU is faster at all products with them."""
  spec, rows = spec_of(w_VD), spec_of(x_CD)
  out = None if spec is None or rows is None else PartitionSpec(spec[0], rows[0])
  return jnp.einsum("VD,CD->VC", w_VD, x_CD, preferred_element_type=jnp.float32, out_sharding=out)


def _einsum(letters: str, a: jax.Array, b: jax.Array, like: jax.Array) -> jax.Array:
  """Returns the product, summed in float32 and spread over devices as `like` is."""
  return jnp.einsum(letters, a, b, preferred_element_type=jnp.float32, out_sharding=spec_of(like))


def _columns(head_VD: jax.Array) -> jax.Array:
  """Returns w_ZSKD, the head in chunks of columns; each has as many from every device that holds a part of them."""
  shares = parts_of(head_VD, 0)
  local = len(head_VD) // shares
  chunks = next((n for n in range(-(-local // _COLUMNS), local // (_COLUMNS // 8) + 1) if local % n == 0), 1)
  return jnp.moveaxis(head_VD.reshape(shares, chunks, -1, head_VD.shape[1]), 1, 0)


def _shared_logits(w_SKD: jax.Array, x_CD: jax.Array) -> jax.Array:
  """Returns logits_SKC; the product has two axes, for which XLA on a CPU is a fifth faster than for three."""
  return _logits(w_SKD.reshape(-1, w_SKD.shape[-1]), x_CD).reshape(*w_SKD.shape[:2], -1)


def _target_logit(head_VD: jax.Array, x_CD: jax.Array, target_C: jax.Array) -> jax.Array:
  """Returns one logit a token, from the head's own column: in the logits it may lie on any device."""
  return jnp.sum(x_CD.astype(jnp.float32) * lookup(head_VD, target_C).astype(jnp.float32), axis=-1)


def _split(a_M: jax.Array, most: int) -> jax.Array:
  """Cuts tokens into chunks of at most `most` a device; the last one is filled with zeros (weight 0, target 0)."""
  parts = parts_of(a_M, 0)
  held = len(a_M) // parts
  chunks = -(-held // most)
  size = -(-held // chunks)
  a_SM = a_M.reshape(parts, held, *a_M.shape[1:])
  a_SM = jnp.pad(a_SM, [(0, 0), (0, chunks * size - held)] + [(0, 0)] * (a_M.ndim - 1))
  return jnp.moveaxis(a_SM.reshape(parts, chunks, size, *a_M.shape[1:]), 1, 0).reshape(chunks, -1, *a_M.shape[1:])


def _joined(chunks: jax.Array, a_M: jax.Array) -> jax.Array:
  """Undoes `_split` of `a_M`; what follows the tokens may be anything."""
  parts = parts_of(a_M, 0)
  a_SM = jnp.moveaxis(chunks.reshape(len(chunks), parts, -1, *chunks.shape[2:]), 0, 1)
  a_SM = a_SM.reshape(parts, -1, *chunks.shape[2:])[:, : len(a_M) // parts]
  return a_SM.reshape(len(a_M), *chunks.shape[2:])
