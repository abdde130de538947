"""How far a student's next-token distributions are from a teacher's, in chunks: the logits never exist all at once.

The gradient is computed beside the loss, as that of the cross-entropy (model/loss.py). Source: distillation,
arXiv 1503.02531; reverse and Jensen–Shannon divergence for language models, arXiv 2306.08543 and arXiv 2306.13649.
Shapes: B batch, T sequence, M = B * T tokens, C those of a chunk, D width of the student, E of the teacher, V
vocabulary, K tokens that the teacher holds most likely. Losses are in nats.
"""

from functools import partial
from typing import Any, Literal, NamedTuple

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
from jaxchop.model.placement import gathered, merged, parted, placed, spec_of

Divergence = Literal["forward", "reverse", "jensen_shannon"]
# Share of all tokens that are not among the likely ones, at least: its logarithm is a number then.
_LEAST = 1e-30


class Teaching(NamedTuple):
  """How a student learns from a teacher."""

  # forward: teacher against student; reverse: student against teacher; or both against their mean.
  kind: Divergence = "forward"
  # Weight of the divergence; the cross-entropy has the rest of 1.
  share: float = 1.0
  # Logits of both are divided by it, and the divergence multiplied by its square, so that gradients stay as large.
  temperature: float = 1.0
  # Weight of log(Z)^2 beside the cross-entropy, see next_token_loss.
  z_loss: float = 0.0


class States(NamedTuple):
  """A teacher beside the student: its states, which left its final norm, and its head."""

  # [B, T, E].
  x: jax.Array
  # [E, V].
  head: jax.Array


class Likely(NamedTuple):
  """A teacher that is not there: its most likely tokens, and the logarithms of their shares at the temperature."""

  # [B, T, K], both.
  ids: jax.Array
  shares: jax.Array


def distilled_loss(
  x_BTD: jax.Array,
  head_DV: jax.Array,
  teacher: States | Likely,
  target_BT: jax.Array,
  weight_BT: jax.Array,
  teaching: Teaching,
  *,
  chunk: int = CHUNK,
) -> tuple[jax.Array, jax.Array]:
  """Returns the weighted sums over tokens of the cross-entropy and of the divergence, float32 scalars.

  Differentiate the first: its gradient, in `x_BTD` and `head_DV`, is that of (1 - share) * cross-entropy + share *
  divergence; the second has none. The hidden states left the final norm. Of a teacher of which only the most likely
  tokens are known, all others count as one token, for the student too: with every token known it is the whole
  divergence, with fewer it is less, and it is zero where the student equals the teacher.
  """
  return _summed(x_BTD, head_DV, teacher, target_BT, weight_BT.astype(jnp.float32), teaching, chunk)


@partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def _summed(x_BTD, head_DV, teacher, target_BT, weight_BT, teaching, chunk):
  return _computed((x_BTD, head_DV, teacher, target_BT, weight_BT), teaching, chunk, False)[0]


def _forward(x_BTD, head_DV, teacher, target_BT, weight_BT, teaching, chunk):
  given = jax.tree.map(lambda one: one.value, (x_BTD, head_DV, teacher, target_BT, weight_BT))
  return _computed(given, teaching, chunk, head_DV.perturbed)


def _backward(teaching, chunk, grads, slopes):
  del teaching, chunk
  return *(jax.tree.map(lambda g: (slopes[0] * g).astype(g.dtype), grads)), None, None, None


_summed.defvjp(_forward, _backward, symbolic_zeros=True)


def _computed(given: tuple[Any, ...], teaching: Teaching, chunk: int, trained: bool) -> tuple[Any, Any]:
  """Returns both sums, and the gradients of the first in x_BTD and, where that is trained, the head."""
  x_BTD, head_DV, teacher, target_BT, weight_BT = given
  head_VD, rows_MD = gathered(head_DV, x_BTD).T, merged(x_BTD, 1)
  teacher_VE = gathered(teacher.head, teacher.x).T if isinstance(teacher, States) else None
  # What the teacher says of each token: its state, or its likely tokens and their shares.
  said = (merged(teacher.x, 1),) if isinstance(teacher, States) else tuple(merged(a, 1) for a in teacher)

  def body(carry, part):
    (loss, divergence), head_grad = carry
    x_CD, said, target_C, weight_C = part
    own_VC, log_z_C = _log_shares(logits(head_VD, x_CD))
    nll_C = log_z_C - target_logit(head_VD, x_CD, target_C)
    slope_VC = jnp.exp(own_VC) * (1 + 2 * teaching.z_loss * log_z_C) - is_target(own_VC, target_C)
    cool = 1 / teaching.temperature
    q_VC = own_VC if cool == 1 else _log_shares(cool * own_VC)[0]
    p_VC = _among(q_VC, *said) if teacher_VE is None else _log_shares(cool * logits(teacher_VE, *said))[0]
    apart_C, pull_VC = _divergence(p_VC, q_VC, teaching.kind)
    # The slope is once divided by the temperature; the loss is multiplied by its square.
    slope_VC = weight_C * ((1 - teaching.share) * slope_VC + teaching.share * teaching.temperature * pull_VC)
    head_grad, grad_CD = gradients(slope_VC.astype(x_CD.dtype), head_VD, x_CD, head_grad)
    sums = loss + jnp.sum(nll_C * weight_C), divergence + teaching.temperature**2 * jnp.sum(apart_C * weight_C)
    return (sums, head_grad), grad_CD

  start = (jnp.zeros(()), jnp.zeros(())), no_gradient(head_DV, rows_MD) if trained else None
  tokens = rows_MD, said, merged(target_BT, 0), merged(weight_BT, 0)
  (sums, head_grad), grad = jax.lax.scan(body, start, jax.tree.map(lambda a_M: split(a_M, chunk), tokens))
  grad_BTD = parted(joined(grad, rows_MD), x_BTD, 1)
  return sums, (grad_BTD.astype(x_BTD.dtype), None if head_grad is None else whole_gradient(head_grad, head_DV))


def _log_shares(logits_VC: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Returns log softmax_VC and the log_z_C that it took off."""
  log_z_C = jax.nn.logsumexp(logits_VC, axis=0)
  return logits_VC - log_z_C, log_z_C


def _among(q_VC: jax.Array, ids_CK: jax.Array, shares_CK: jax.Array) -> jax.Array:
  """Returns p_VC, logarithms: of the likely tokens as given, of the others what is left, in the student's proportions.

  Whatever those are, the divergence from q_VC and its slope are those of the likely tokens and all others as one.
  """

  def spread(q_VC: jax.Array, ids_CK: jax.Array, shares_CK: jax.Array) -> jax.Array:
    column_C1 = jnp.arange(q_VC.shape[1])[:, None]
    known_VC = jnp.full_like(q_VC, -jnp.inf).at[ids_CK, column_C1].set(shares_CK)
    others_VC = jnp.isneginf(known_VC)
    own_C = jax.nn.logsumexp(q_VC, axis=0, where=others_VC)
    left_C = jnp.log(jnp.maximum(-jnp.expm1(jax.nn.logsumexp(shares_CK, axis=1)), _LEAST))
    return jnp.where(others_VC, q_VC - own_C + left_C, known_VC)

  return placed(spread, spec_of(q_VC), q_VC, ids_CK, shares_CK)


def _divergence(p_VC: jax.Array, q_VC: jax.Array, kind: Divergence) -> tuple[jax.Array, jax.Array]:
  """Returns the divergence_C of teacher p and student q, given as logarithms, and its slope_VC in the student's logits.

  Slopes in closed form, so that a student that equals its teacher has none.
  """
  if kind == "forward":
    apart_VC = p_VC - q_VC
    return jnp.sum(jnp.exp(p_VC) * apart_VC, axis=0), jnp.exp(q_VC) - jnp.exp(p_VC)
  share_VC = jnp.exp(q_VC)
  if kind == "reverse":
    apart_VC = q_VC - p_VC
    apart_C = jnp.sum(share_VC * apart_VC, axis=0)
    return apart_C, share_VC * (apart_VC - apart_C)
  mean_VC = jnp.logaddexp(p_VC, q_VC) - jnp.log(2.0)
  apart_VC = q_VC - mean_VC
  apart_C = jnp.sum(share_VC * apart_VC, axis=0)
  teacher_C = jnp.sum(jnp.exp(p_VC) * (p_VC - mean_VC), axis=0)
  return (apart_C + teacher_C) / 2, share_VC * (apart_VC - apart_C) / 2
