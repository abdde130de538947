"""Any subset of a model's layers in one compiled program: dead layers are skipped, nothing is rebuilt.

Shapes: B windows, T tokens, D width, L layers.
"""

from typing import Any

import jax
import jax.numpy as jnp

from jaxchop.model.llama import Block, Llama

# (cos_BTR, sin_BTR) of the positions, see model/rope.py.
Turn = tuple[jax.Array, jax.Array]


def stacked(model: Llama) -> Any:
  """Returns the model's layers as one block whose arrays have a leading axis L."""
  return jax.tree.map(lambda *leaves: jnp.stack(leaves), *model.layers)


def layer_at(stack: Any, index: jax.Array | int) -> Block:
  """Returns one block of a stack; `index` may be traced."""
  return jax.tree.map(lambda leaf: leaf[index], stack)


def run_alive(stack: Any, x_BTD: jax.Array, turn: Turn, alive_L: jax.Array, start: jax.Array | int = 0) -> jax.Array:
  """Returns the residual stream after the blocks `start`.. that are alive; a dead one costs nothing.

  `start` and the truth values `alive_L` may be traced, so one program serves every subset.
  """

  def block(index: jax.Array, x_BTD: jax.Array) -> jax.Array:
    return jax.lax.cond(alive_L[index], lambda x: layer_at(stack, index)(x, turn), lambda x: x, x_BTD)

  return jax.lax.fori_loop(start, len(alive_L), block, x_BTD)
