"""Criteria that watch the residual stream: how much does a block change what passes through it?

Shapes: B windows, T tokens, D width, L layers.
"""

import jax
import jax.numpy as jnp

from jaxchop.model.llama import Block, Llama, positions, walk
from jaxchop.model.rope import rotation

BLOCK_INFLUENCE = (
  "mean over tokens of 1 - cos(input, output) of the block, raw residual stream, float32 (ShortGPT, arXiv 2403.03853)"
)


def block_influence(model: Llama, ids_BT: jax.Array) -> jax.Array:
  """Returns influence_BL: per window and block, the mean over tokens of 1 - cos(input, output), in float32.

  0 means that the block changes no direction. The last block's output is taken before the final norm.
  Source: ShortGPT, arXiv 2403.03853; per token, as its released code does.
  """
  turn = rotation(model.config, positions(ids_BT))

  def body(layer: Block, x_BTD: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
    y_BTD = layer(x_BTD, turn)
    return y_BTD, jnp.mean(1.0 - _cosine(x_BTD, y_BTD), axis=1)

  return walk(model.layers, model.embed(ids_BT), body)[1].T


def _cosine(x_BTD: jax.Array, y_BTD: jax.Array) -> jax.Array:
  x, y = x_BTD.astype(jnp.float32), y_BTD.astype(jnp.float32)
  scale = jnp.linalg.norm(x, axis=-1) * jnp.linalg.norm(y, axis=-1)
  return jnp.sum(x * y, axis=-1) / jnp.maximum(scale, jnp.finfo(jnp.float32).tiny)
