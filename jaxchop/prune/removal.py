"""Criteria that take a layer out and look at the loss.

Shapes: B windows, T tokens, D width, L layers.
"""

import jax
import jax.numpy as jnp

from jaxchop.model.llama import Block, Llama, positions, walk
from jaxchop.model.loss import token_nll
from jaxchop.model.rope import rotation

PERPLEXITY = "perplexity of the calibration windows by the model without the layer (Shortened LLaMA, arXiv 2402.02834)"


def nll_without_each(model: Llama, ids_BT: jax.Array) -> jax.Array:
  """Returns nll_BL: per window, the mean nats per token of the model without block l; exact.

  Candidate l shares the activations that enter block l with the whole model, so only the blocks after it run again:
  about half the work of running each candidate from the start, in one program whatever the candidate.
  Source: the perplexity criterion of Shortened LLaMA, arXiv 2402.02834.
  """
  turn = rotation(model.config, positions(ids_BT))
  head_DV = model.head_DV()

  def keep_input(layer: Block, x_BTD: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
    return layer(x_BTD, turn), x_BTD

  def finish(candidate: tuple[jax.Array, jax.Array]) -> jax.Array:
    removed, x_BTD = candidate
    x_BTD = jax.lax.fori_loop(removed + 1, len(model.layers), run_block, x_BTD)
    return token_nll(model.norm(x_BTD)[:, :-1], head_DV, ids_BT[:, 1:]).mean(axis=1)

  stack = jax.tree.map(lambda *leaves: jnp.stack(leaves), *model.layers)

  def run_block(index: jax.Array, x_BTD: jax.Array) -> jax.Array:
    return jax.tree.map(lambda leaf: leaf[index], stack)(x_BTD, turn)

  inputs_LBTD = walk(model.layers, model.embed(ids_BT), keep_input)[1]
  return jax.lax.map(finish, (jnp.arange(len(model.layers)), inputs_LBTD)).T
