"""Rotary position embeddings in the half-rotation layout of Hugging Face checkpoints: nothing is permuted.

Shapes: B batch, T positions, N heads, H head width, R = H / 2 frequencies, P = 2 halves of a head.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from jaxchop.model.config import LlamaConfig, Rope
from jaxchop.target import target


def rotation(config: LlamaConfig, positions_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Returns cos_BTR and sin_BTR for the given positions, in float32.

  Frequencies as in transformers' `modeling_rope_utils` (types default, linear, dynamic, llama3, yarn).
  """
  frequency_R, scale = _frequencies(config, positions_BT)
  angle_BTR = positions_BT[..., None].astype(jnp.float32) * frequency_R
  # Joined behind a barrier they are computed once: XLA would do it again in every fusion that reads them.
  cos_and_sin = jnp.stack([jnp.cos(angle_BTR) * scale, jnp.sin(angle_BTR) * scale])
  cos_BTR, sin_BTR = jax.lax.optimization_barrier(cos_and_sin)
  return cos_BTR, sin_BTR


def rotate(x_BTNH: jax.Array, cos_BTR: jax.Array, sin_BTR: jax.Array) -> jax.Array:
  """Rotates the pairs (i, i + H/2) of each head; the result has the dtype of `x_BTNH`."""
  if target().platform == "tpu":
    return _rotated_by_product(x_BTNH, cos_BTR, sin_BTR)
  # Halves are swapped, not cut and joined: no join is left, forward or backward.
  cos_BT11R = cos_BTR[:, :, None, None].astype(x_BTNH.dtype)
  sin_BT1PR = jnp.stack([-sin_BTR, sin_BTR], axis=-2)[:, :, None].astype(x_BTNH.dtype)
  x_BTNPR = x_BTNH.reshape(*x_BTNH.shape[:-1], 2, -1)
  return (x_BTNPR * cos_BT11R + jnp.flip(x_BTNPR, axis=-2) * sin_BT1PR).reshape(x_BTNH.shape)


def _rotated_by_product(x_BTNH: jax.Array, cos_BTR: jax.Array, sin_BTR: jax.Array) -> jax.Array:
  """Swaps the halves by a product with a permutation, which is exact.

  On a TPU a head's width lies along the lanes of a register: cut there, arrays are laid out anew, forward and backward,
  while a product takes next to no time and all else goes along with it.
  """
  H, dtype = x_BTNH.shape[-1], x_BTNH.dtype
  cos_B1TH = jnp.concatenate([cos_BTR, cos_BTR], axis=-1)[:, None].astype(dtype)
  sin_B1TH = jnp.concatenate([-sin_BTR, sin_BTR], axis=-1)[:, None].astype(dtype)
  # Positions before widths: the tiles that attention takes, see heads.py.
  x_BNTH = x_BTNH.swapaxes(1, 2)
  swap_HH = np.roll(np.eye(H, dtype=dtype), H // 2, axis=0)
  return (x_BNTH * cos_B1TH + jnp.matmul(x_BNTH, swap_HH, precision="highest") * sin_B1TH).swapaxes(1, 2)


def _frequencies(config: LlamaConfig, positions_BT: jax.Array) -> tuple[jax.Array, float]:
  rope = config.rope
  base_R = _inverse(rope.theta, config.head_dim)
  match rope.kind:
    case "default":
      return jnp.asarray(base_R), 1.0
    case "linear":
      return jnp.asarray(base_R / np.float32(rope.factor)), 1.0
    case "dynamic":
      return _dynamic(config, positions_BT), 1.0
    case "llama3":
      return jnp.asarray(_llama3(rope, base_R)), 1.0
    case "yarn":
      return jnp.asarray(_yarn(rope, config.head_dim)), _yarn_scale(rope)


def _inverse(theta: float, head_dim: int) -> np.ndarray:
  """Returns theta^(-2i/H), rounded once in the power and once in the division, as torch does."""
  exponent_R = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
  return np.float32(1.0) / np.power(theta, exponent_R.astype(np.float64)).astype(np.float32)


def _dynamic(config: LlamaConfig, positions_BT: jax.Array) -> jax.Array:
  """NTK scaling by the longest position present: beyond max_positions the base grows with the length."""
  rope, dim = config.rope, config.head_dim
  length = jnp.maximum(positions_BT.max() + 1, config.max_positions).astype(jnp.float32)
  stretch = rope.factor * length / config.max_positions - (rope.factor - 1)
  theta = rope.theta * stretch ** (dim / (dim - 2))
  return 1.0 / theta ** (jnp.arange(0, dim, 2, dtype=jnp.float32) / dim)


def _llama3(rope: Rope, base_R: np.ndarray) -> np.ndarray:
  """Long wavelengths are divided by factor, short ones kept, those between interpolated (Llama 3.1)."""
  length = rope.original_max_positions
  assert length is not None
  wavelength_R = 2 * np.pi / base_R
  smooth_R = (length / wavelength_R - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
  between_R = (1 - smooth_R) * base_R / rope.factor + smooth_R * base_R
  scaled_R = np.where(wavelength_R > length / rope.low_freq_factor, base_R / rope.factor, between_R)
  return np.where(wavelength_R < length / rope.high_freq_factor, base_R, scaled_R).astype(np.float32)


def _yarn(rope: Rope, head_dim: int) -> np.ndarray:
  """NTK by parts: a ramp between kept and divided frequencies. Source: YaRN, arXiv 2309.00071."""

  def dimension_of(rotations: float) -> float:
    assert rope.original_max_positions is not None
    return head_dim * math.log(rope.original_max_positions / (rotations * 2 * math.pi)) / (2 * math.log(rope.theta))

  low, high = dimension_of(rope.beta_fast), dimension_of(rope.beta_slow)
  if rope.truncate:
    low, high = math.floor(low), math.ceil(high)
  low, high = max(low, 0), min(high, head_dim - 1)
  if low == high:
    high += 0.001
  ramp_R = np.clip((np.arange(head_dim // 2, dtype=np.float32) - low) / (high - low), 0, 1).astype(np.float32)
  kept_R = _inverse(rope.theta, head_dim)
  return (kept_R / np.float32(rope.factor) * ramp_R + kept_R * (1 - ramp_R)).astype(np.float32)


def _yarn_scale(rope: Rope) -> float:
  def mscale(weight: float) -> float:
    return 0.1 * weight * math.log(rope.factor) + 1.0 if rope.factor > 1 else 1.0

  if rope.attention_factor is not None:
    return rope.attention_factor
  if rope.mscale and rope.mscale_all_dim:
    return mscale(rope.mscale) / mscale(rope.mscale_all_dim)
  return mscale(1.0)
