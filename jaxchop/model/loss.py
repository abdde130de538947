"""Next-token cross-entropy, a chunk of tokens at a time: [batch, sequence, vocabulary] never exists.

Shapes: B batch, T sequence, M = B * T tokens, C tokens of a chunk, D width, V vocabulary. Losses are in nats.
"""

from functools import partial

import jax
import jax.numpy as jnp

# Tokens whose logits exist at once: large enough for full matrix speed, small against the weights themselves.
CHUNK = 512


def token_nll(x_BTD: jax.Array, head_DV: jax.Array, target_BT: jax.Array, *, chunk: int = CHUNK) -> jax.Array:
  """Returns nll_BT, the negative log-likelihood of each target in float32; `x_BTD` left the final norm."""

  def body(_: None, part: tuple[jax.Array, jax.Array]) -> tuple[None, jax.Array]:
    x_CD, target_C = part
    return None, _nll(_logits(x_CD, head_DV), target_C)

  parts = _split(x_BTD.reshape(-1, x_BTD.shape[-1]), chunk), _split(target_BT.reshape(-1), chunk)
  nll = jax.lax.scan(body, None, parts)[1]
  return nll.reshape(-1)[: target_BT.size].reshape(target_BT.shape)


def next_token_loss(
  x_BTD: jax.Array, head_DV: jax.Array, target_BT: jax.Array, weight_BT: jax.Array, *, chunk: int = CHUNK
) -> jax.Array:
  """Returns the weighted sum of the targets' negative log-likelihoods, a float32 scalar; `x_BTD` left the final norm.

  Differentiable in `x_BTD` and `head_DV`. The gradient is computed beside the loss, chunk by chunk, so that logits are
  neither kept nor computed twice (the idea of Cut Cross-Entropy and Liger's fused linear cross-entropy).
  """
  x_MD = x_BTD.reshape(-1, x_BTD.shape[-1])
  return _summed(x_MD, head_DV, target_BT.reshape(-1), weight_BT.reshape(-1).astype(jnp.float32), chunk)


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _summed(x_MD: jax.Array, head_DV: jax.Array, target_M: jax.Array, weight_M: jax.Array, chunk: int) -> jax.Array:
  nll_M = token_nll(x_MD[None], head_DV, target_M[None], chunk=chunk)[0]
  return jnp.sum(nll_M * weight_M)


def _summed_forward(x_MD, head_DV, target_M, weight_M, chunk):
  def body(carry, part):
    loss, grad_DV = carry
    x_CD, target_C, weight_C = part
    logits_CV = _logits(x_CD, head_DV)
    # One exponential serves the loss and the softmax: this pass over the vocabulary is bound by memory.
    top_C = logits_CV.max(axis=1)
    share_CV = jnp.exp(logits_CV - top_C[:, None])
    total_C = share_CV.sum(axis=1)
    nll_C = jnp.log(total_C) + top_C - _at(logits_CV, target_C)
    hit_CV = jax.lax.broadcasted_iota(target_C.dtype, logits_CV.shape, 1) == target_C[:, None]
    slope_CV = share_CV * (weight_C / total_C)[:, None] - jnp.where(hit_CV, weight_C[:, None], 0.0)
    slope_CV = slope_CV.astype(x_CD.dtype)
    grad_CD = jnp.einsum("CV,DV->CD", slope_CV, head_DV)
    grad_DV += jnp.einsum("CD,CV->DV", x_CD, slope_CV, preferred_element_type=jnp.float32)
    return (loss + jnp.sum(nll_C * weight_C), grad_DV), grad_CD

  start = jnp.zeros(()), jnp.zeros(head_DV.shape, jnp.float32)
  parts = _split(x_MD, chunk), _split(target_M, chunk), _split(weight_M, chunk)
  (loss, grad_DV), grad = jax.lax.scan(body, start, parts)
  return loss, (grad.reshape(-1, x_MD.shape[1])[: len(x_MD)], grad_DV.astype(head_DV.dtype))


def _summed_backward(chunk, grads, slope):
  del chunk
  return *(jax.tree.map(lambda g: (slope * g).astype(g.dtype), grads)), None, None


_summed.defvjp(_summed_forward, _summed_backward)


def _logits(x_CD: jax.Array, head_DV: jax.Array) -> jax.Array:
  return jnp.einsum("CD,DV->CV", x_CD, head_DV, preferred_element_type=jnp.float32)


def _nll(logits_CV: jax.Array, target_C: jax.Array) -> jax.Array:
  return jax.nn.logsumexp(logits_CV, axis=1) - _at(logits_CV, target_C)


def _at(logits_CV: jax.Array, target_C: jax.Array) -> jax.Array:
  return jnp.take_along_axis(logits_CV, target_C[:, None], axis=1)[:, 0]


def _split(a: jax.Array, chunk: int) -> jax.Array:
  """Cuts the leading axis into whole chunks, the last one filled with zeros (weight 0, target 0)."""
  size = min(chunk, len(a))
  padded = jnp.pad(a, [(0, -len(a) % size)] + [(0, 0)] * (a.ndim - 1))
  return padded.reshape(-1, size, *a.shape[1:])
