"""Next-token cross-entropy in chunks: [batch, sequence, vocabulary] never exists.

Where no gradient is asked for, the vocabulary goes in chunks as well: logits then stay in the cache.
Shapes: B batch, T sequence, M = B * T tokens, C those of a chunk, D width, V vocabulary in Z chunks of K tokens on each
of S devices. Losses are in nats.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxchop.model.chunks import (
  CHUNK,
  gradients,
  is_target,
  joined,
  logits,
  no_gradient,
  split,
  target_logit,
  whole_gradient,
)
from jaxchop.model.placement import gathered, merged, parted, parts_of

# Tokens and columns whose logits a device holds at once where no gradient is asked for: their product takes the time of
# a larger one's matrix product alone, as its logits are still in the cache when they are summed up.
_TOKENS, _COLUMNS = 2048, 4096


def token_nll(x_BTD: jax.Array, head_DV: jax.Array, target_BT: jax.Array) -> jax.Array:
  """Returns nll_BT, the negative log-likelihood of each target in float32; `x_BTD` left the final norm."""
  return _over_vocabulary(x_BTD, head_DV, target_BT, _sum)[0]


def token_nll_and_top(x_BTD: jax.Array, head_DV: jax.Array, target_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Returns `token_nll` and top_BT, the most probable token at each place, the first of several alike."""
  return _over_vocabulary(x_BTD, head_DV, target_BT, _sum_and_top)


def _over_vocabulary(
  x_BTD: jax.Array, head_DV: jax.Array, target_BT: jax.Array, found: Callable[[jax.Array], tuple[jax.Array, ...]]
) -> Any:
  """Returns nll_BT, and top_BT where `found` keeps of each chunk of logits its best one and which it is."""
  whole_VD = gathered(head_DV, x_BTD).T
  w_ZSKD = _columns(whole_VD)

  def body(_: None, part: tuple[jax.Array, jax.Array]) -> tuple[None, tuple[jax.Array, ...]]:
    x_CD, target_C = part
    # A device sums up its own share of the vocabulary; only these sums travel.
    sums_ZSC, *best = jax.lax.map(lambda w_SKD: found(_shared_logits(w_SKD, x_CD)), w_ZSKD)
    nll_C = jax.nn.logsumexp(sums_ZSC, axis=(0, 1)) - target_logit(whole_VD, x_CD, target_C)
    return None, (nll_C, *([_top(best[0], best[1], w_ZSKD.shape)] if best else []))

  x_MD, target_M = merged(x_BTD, 1), merged(target_BT, 0)
  chunks = jax.lax.scan(body, None, (split(x_MD, _TOKENS), split(target_M, _TOKENS)))[1]
  return tuple(parted(joined(chunk, target_M), target_BT, 0) for chunk in chunks)


def _sum(logits_SKC: jax.Array) -> tuple[jax.Array, ...]:
  return (jax.nn.logsumexp(logits_SKC, axis=1),)


def _sum_and_top(logits_SKC: jax.Array) -> tuple[jax.Array, ...]:
  return jax.nn.logsumexp(logits_SKC, axis=1), logits_SKC.max(axis=1), jnp.argmax(logits_SKC, axis=1)


def _top(best_ZSC: jax.Array, which_ZSC: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """Returns the token of the best of all chunks' logits; `shape` is that of the head in chunks, w_ZSKD."""
  Z, S, K, _ = shape
  start_ZS1 = (jnp.arange(S)[None, :, None] * Z + jnp.arange(Z)[:, None, None]) * K
  is_best_ZSC = best_ZSC == best_ZSC.max(axis=(0, 1), keepdims=True)
  return jnp.where(is_best_ZSC, start_ZS1 + which_ZSC, Z * S * K).min(axis=(0, 1))


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
  # A head that does not train gets no gradient: a third of its work.
  trained, x_BTD, head_DV = head_DV.perturbed, x_BTD.value, head_DV.value
  target_BT, weight_BT = target_BT.value, weight_BT.value
  whole_VD, rows_MD = gathered(head_DV, x_BTD).T, merged(x_BTD, 1)

  def body(carry, part):
    loss, head_grad = carry
    x_CD, target_C, weight_C = part
    logits_VC = logits(whole_VD, x_CD)
    # One exponential serves the loss and the softmax: this pass over the vocabulary is bound by memory.
    top_C = logits_VC.max(axis=0)
    share_VC = jnp.exp(logits_VC - top_C)
    total_C = share_VC.sum(axis=0)
    log_z_C = jnp.log(total_C) + top_C
    nll_C = log_z_C - target_logit(whole_VD, x_CD, target_C)
    pull_C = weight_C * (1 + 2 * z_loss * log_z_C) if z_loss else weight_C
    slope_VC = share_VC * (pull_C / total_C) - jnp.where(is_target(logits_VC, target_C), weight_C, 0.0)
    head_grad, grad_CD = gradients(slope_VC.astype(x_CD.dtype), whole_VD, x_CD, head_grad)
    return (loss + jnp.sum(nll_C * weight_C), head_grad), grad_CD

  start = jnp.zeros(()), no_gradient(head_DV, rows_MD) if trained else None
  tokens = rows_MD, merged(target_BT, 0), merged(weight_BT, 0)
  (loss, head_grad), grad = jax.lax.scan(body, start, tuple(split(a_M, chunk) for a_M in tokens))
  grad_BTD = parted(joined(grad, rows_MD), x_BTD, 1)
  return loss, (grad_BTD.astype(x_BTD.dtype), None if head_grad is None else whole_gradient(head_grad, head_DV))


def _summed_backward(chunk, z_loss, grads, slope):
  del chunk, z_loss
  return *(jax.tree.map(lambda g: (slope * g).astype(g.dtype), grads)), None, None


_summed.defvjp(_summed_forward, _summed_backward, symbolic_zeros=True)


def _columns(head_VD: jax.Array) -> jax.Array:
  """Returns w_ZSKD, the head in chunks of columns; each has as many from every device that holds a part of them."""
  shares = parts_of(head_VD, 0)
  local = len(head_VD) // shares
  chunks = next((n for n in range(-(-local // _COLUMNS), local // (_COLUMNS // 8) + 1) if local % n == 0), 1)
  return jnp.moveaxis(head_VD.reshape(shares, chunks, -1, head_VD.shape[1]), 1, 0)


def _shared_logits(w_SKD: jax.Array, x_CD: jax.Array) -> jax.Array:
  """Returns logits_SKC; the product has two axes, for which XLA on a CPU is a fifth faster than for three."""
  return logits(w_SKD.reshape(-1, w_SKD.shape[-1]), x_CD).reshape(*w_SKD.shape[:2], -1)
