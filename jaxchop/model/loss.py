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

from jaxchop.model.placement import gathered, lookup, merged, parted, parts_of, product, spec_of

# Tokens whose logits a device holds at once: large enough for full matrix speed, small against the weights themselves.
CHUNK = 512
# The same where no gradient is asked for, and of how many columns: their product takes the time of a larger one's
# matrix product alone, as its logits are still in the cache when they are summed up.
_TOKENS, _COLUMNS = 2048, 4096


def token_nll(x_BTD: jax.Array, head_DV: jax.Array, target_BT: jax.Array) -> jax.Array:
  """Returns nll_BT, the negative log-likelihood of each target in float32; `x_BTD` left the final norm."""
  w_ZSKD = _columns(gathered(head_DV, x_BTD))

  def body(_: None, part: tuple[jax.Array, jax.Array]) -> tuple[None, jax.Array]:
    x_CD, target_C = part
    # A device sums up its own share of the vocabulary; only these sums travel.
    sums_ZCS = jax.lax.map(lambda w_SKD: jax.nn.logsumexp(_shared_logits(x_CD, w_SKD), axis=2), w_ZSKD)
    return None, jax.nn.logsumexp(sums_ZCS, axis=(0, 2)) - _target_logit(x_CD, head_DV, target_C)

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
  whole_DV = gathered(head_DV, x_BTD)

  def body(carry, part):
    loss, grad_DV = carry
    x_CD, target_C, weight_C = part
    logits_CV = _logits(x_CD, whole_DV)
    # One exponential serves the loss and the softmax: this pass over the vocabulary is bound by memory.
    top_C = logits_CV.max(axis=1)
    share_CV = jnp.exp(logits_CV - top_C[:, None])
    total_C = share_CV.sum(axis=1)
    log_z_C = jnp.log(total_C) + top_C
    nll_C = log_z_C - _target_logit(x_CD, whole_DV, target_C)
    pull_C = weight_C * (1 + 2 * z_loss * log_z_C) if z_loss else weight_C
    hit_CV = jax.lax.broadcasted_iota(target_C.dtype, logits_CV.shape, 1) == target_C[:, None]
    slope_CV = share_CV * (pull_C / total_C)[:, None] - jnp.where(hit_CV, weight_C[:, None], 0.0)
    slope_CV = slope_CV.astype(x_CD.dtype)
    grad_DV += jnp.einsum(
      "CD,CV->DV", x_CD, slope_CV, preferred_element_type=jnp.float32, out_sharding=spec_of(head_DV)
    )
    return (loss + jnp.sum(nll_C * weight_C), grad_DV), product(slope_CV, whole_DV.T)

  x_MD, start = merged(x_BTD, 1), (jnp.zeros(()), jnp.zeros_like(head_DV, jnp.float32))
  tokens = x_MD, merged(target_BT, 0), merged(weight_BT, 0)
  (loss, grad_DV), grad = jax.lax.scan(body, start, tuple(_split(a_M, chunk) for a_M in tokens))
  return loss, (parted(_joined(grad, x_MD), x_BTD, 1), grad_DV.astype(head_DV.dtype))


def _summed_backward(chunk, z_loss, grads, slope):
  del chunk, z_loss
  return *(jax.tree.map(lambda g: (slope * g).astype(g.dtype), grads)), None, None


_summed.defvjp(_summed_forward, _summed_backward)


def _logits(x_CD: jax.Array, head_DV: jax.Array) -> jax.Array:
  return product(x_CD, head_DV, dtype=jnp.float32)


def _columns(head_DV: jax.Array) -> jax.Array:
  """Returns w_ZSKD, the head in chunks of columns; each has as many from every device that holds a part of them."""
  shares = parts_of(head_DV, 1)
  local = head_DV.shape[1] // shares
  chunks = next((n for n in range(-(-local // _COLUMNS), local // (_COLUMNS // 8) + 1) if local % n == 0), 1)
  w_SZKD = head_DV.T.reshape(shares, chunks, -1, len(head_DV))
  return jnp.moveaxis(w_SZKD, 1, 0)


def _shared_logits(x_CD: jax.Array, w_SKD: jax.Array) -> jax.Array:
  """Returns logits_CSK; the product has two axes, for which XLA on a CPU is a fifth faster than for three."""
  w_VD = w_SKD.reshape(-1, w_SKD.shape[-1])
  return _logits(x_CD, w_VD.T).reshape(len(x_CD), *w_SKD.shape[:2])


def _target_logit(x_CD: jax.Array, head_DV: jax.Array, target_C: jax.Array) -> jax.Array:
  """Returns one logit a token, from the head's own column: in the logits it may lie on any device."""
  return jnp.sum(x_CD.astype(jnp.float32) * lookup(head_DV.T, target_C).astype(jnp.float32), axis=-1)


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
