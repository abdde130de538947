"""What one forward pass over calibration windows tells of every layer: the residual stream before and after it.

Shapes: B windows, T tokens, D width, L layers; S and R index the L + 1 states: state l enters block l, state L leaves
the last one, before the final norm. Everything is computed in float32.
"""

import jax
import jax.numpy as jnp

from jaxchop.model.llama import Block, Llama, positions, walk
from jaxchop.model.loss import token_nll
from jaxchop.model.rope import rotation

# On accelerators a product of float32 numbers is rounded to bfloat16 unless it is asked not to be.
_EXACT = jax.lax.Precision.HIGHEST


def states(model: Llama, ids_BT: jax.Array) -> jax.Array:
  """Returns the raw residual stream x_SBTD in float32: what enters each block, and what leaves the last."""
  turn = rotation(model.config, positions(ids_BT))

  def body(layer: Block, x_BTD: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
    return layer(x_BTD, turn), x_BTD

  last_BTD, entering_LBTD = walk(model.layers, model.embed(ids_BT), body)
  return jnp.concatenate([entering_LBTD, last_BTD[None]]).astype(jnp.float32)


def statistics(model: Llama, ids_BT: jax.Array, real_BT: jax.Array, seen_BT: jax.Array) -> dict[str, jax.Array]:
  """Returns what the activation criteria are made of, by name, each with a leading axis B.

  `real_BT` is false at padding (on the right), `seen_BT` also at what the criteria are to leave out.
  - nll [B]: nats per token of the whole model
  - cosine, angle [B, S, R]: mean over tokens of cos(x_s, x_r) and of arccos(cos(x_s, x_r)) / pi
  - angle_last [B, S, R]: the same angle at the last token
  - pooled [B, 3, L]: sums over tokens of (y - x)·(y - x), (y - x)·(y + x) and x·x for the input x and output y of each
    block; 1 - cos of the pooled vectors would drown in rounding if it were made of x·y
  - euclidean, relative [B, L]: mean over tokens of |y - x| and of |y - x| / |y|
  - hsic [B, S, R]: the unbiased HSIC of the states' linear kernels K, tokens being the examples
  - hsic_change [B, 3, L]: of each block's K_l and D = K_{l+1} - K_l, the HSIC of (K, K), (K, D) and (D, D)
  """
  x_SBTD = states(model, ids_BT)
  share_BT = seen_BT / jnp.sum(seen_BT, axis=1, keepdims=True)
  norm_SBT = jnp.linalg.norm(x_SBTD, axis=-1)
  unit_SBTD = x_SBTD / jnp.maximum(norm_SBT, jnp.finfo(jnp.float32).tiny)[..., None]
  cos_BSRT = jnp.clip(jnp.einsum("SBTD,RBTD->BSRT", unit_SBTD, unit_SBTD, precision=_EXACT), -1.0, 1.0)
  angle_BSRT = jnp.arccos(cos_BSRT) / jnp.pi
  last_B = jnp.max(jnp.where(real_BT, jnp.arange(real_BT.shape[1]), 0), axis=1)
  change_LBTD, both_LBTD = x_SBTD[1:] - x_SBTD[:-1], x_SBTD[1:] + x_SBTD[:-1]
  change_LBT = jnp.linalg.norm(change_LBTD, axis=-1)
  sums_PLBT = jnp.stack([change_LBT**2, jnp.sum(change_LBTD * both_LBTD, axis=-1), norm_SBT[:-1] ** 2])
  return {
    "nll": mean_nll(model, x_SBTD[-1], ids_BT, real_BT),
    "cosine": jnp.einsum("BSRT,BT->BSR", cos_BSRT, share_BT, precision=_EXACT),
    "angle": jnp.einsum("BSRT,BT->BSR", angle_BSRT, share_BT, precision=_EXACT),
    "angle_last": jnp.take_along_axis(angle_BSRT, last_B[:, None, None, None], axis=3)[..., 0],
    "pooled": jnp.einsum("PLBT,BT->BPL", sums_PLBT, seen_BT.astype(jnp.float32), precision=_EXACT),
    "euclidean": jnp.einsum("LBT,BT->BL", change_LBT, share_BT, precision=_EXACT),
    "relative": jnp.einsum("LBT,BT->BL", change_LBT / norm_SBT[1:], share_BT, precision=_EXACT),
    **hsic(x_SBTD, seen_BT),
  }


def mean_nll(model: Llama, x_BTD: jax.Array, ids_BT: jax.Array, real_BT: jax.Array) -> jax.Array:
  """Returns nll_B, the mean nats per predicted token of each window; `x_BTD` is the raw last state."""
  nll_BT = token_nll(model.norm(x_BTD)[:, :-1], model.head_DV(), ids_BT[:, 1:])
  return jnp.sum(jnp.where(real_BT[:, 1:], nll_BT, 0.0), axis=1) / jnp.sum(real_BT[:, 1:], axis=1)


def hsic(x_SBTD: jax.Array, seen_BT: jax.Array) -> dict[str, jax.Array]:
  """Returns `hsic` and `hsic_change` of the states, see `statistics`, over each window's tokens.

  Source: HSIC_1 of Song et al. 2012 (JMLR 13), whose sums over minibatches give CKA without bias: Nguyen, Raghu,
  Kornblith (arXiv 2010.15327), eq. 3.
  """
  n_B = jnp.sum(seen_BT, axis=1).astype(jnp.float32)
  pair_BTU = seen_BT[:, :, None] & seen_BT[:, None, :] & ~jnp.eye(seen_BT.shape[1], dtype=bool)

  def kernel(a_SBTD: jax.Array, b_SBTD: jax.Array) -> jax.Array:
    return jnp.where(pair_BTU, jnp.einsum("SBTD,SBUD->SBTU", a_SBTD, b_SBTD, precision=_EXACT), 0.0)

  def inner(letters: str, a_SBTU: jax.Array, b_SBTU: jax.Array) -> jax.Array:
    """HSIC of the pairs that `letters` says, as "S,R->SR" or "S,S->S"; the leading axis B is last here."""
    both, out = letters.split("->")
    one, other = both.split(",")
    row_SBT, row_RBT = a_SBTU.sum(-1), b_SBTU.sum(-1)
    trace = jnp.einsum(f"{one}BTU,{other}BTU->{out}B", a_SBTU, b_SBTU, precision=_EXACT)
    totals = jnp.einsum(f"{one}B,{other}B->{out}B", row_SBT.sum(-1), row_RBT.sum(-1), precision=_EXACT)
    rows = jnp.einsum(f"{one}BT,{other}BT->{out}B", row_SBT, row_RBT, precision=_EXACT)
    return (trace + totals / ((n_B - 1) * (n_B - 2)) - 2 * rows / (n_B - 2)) / (n_B * (n_B - 3))

  kernel_SBTU, change_LBTD = kernel(x_SBTD, x_SBTD), x_SBTD[1:] - x_SBTD[:-1]
  before_LBTU, change_LBTU = kernel_SBTU[:-1], kernel(change_LBTD, x_SBTD[1:]) + kernel(x_SBTD[:-1], change_LBTD)
  steps = (before_LBTU, before_LBTU), (before_LBTU, change_LBTU), (change_LBTU, change_LBTU)
  return {
    "hsic": jnp.moveaxis(inner("S,R->SR", kernel_SBTU, kernel_SBTU), -1, 0),
    "hsic_change": jnp.moveaxis(jnp.stack([inner("L,L->L", *step) for step in steps]), -1, 0),
  }
