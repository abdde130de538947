"""Layers that are to go are faded out while all weights train: what they knew moves to the layers that stay.

A layer adds to the residual stream; a gate in front of what it adds falls from one step to the next, and at 0 the layer
is gone: to cut it then changes nothing. What they still change is penalised, after ELDeR (arXiv 2505.18232), which
learns such gates where here a schedule lowers them. Shapes: B batch, T sequence, D width, L layers.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxchop.data.batch import Batch
from jaxchop.model.llama import Llama, hidden_and
from jaxchop.model.loss import next_token_loss
from jaxchop.model.tree import dotted
from jaxchop.recover.objective import computing, inputs
from jaxchop.training import RecoverConfig

# What a layer adds comes out of these.
_LAST = ("attention.o.kernel", "attention.o.bias", "mlp.down.kernel", "mlp.down.bias")


class Fading(NamedTuple):
  """Which layers go, and the weight of what they change."""

  layers: tuple[int, ...]
  penalty: float = 0.0


def gate(done: jax.Array, steps: int) -> jax.Array:
  """Returns the gate of the step behind so many updates: it falls evenly, and the last step is without the layers."""
  # Exactly 0 at the end, also where the compiler multiplies by 1 / steps.
  return (steps - 1 - done) / steps


def faded(model: Llama, layers: Sequence[int], gate: jax.Array) -> Llama:
  """Returns the model with what these layers add to the residual stream times `gate`."""
  names = {f"layers.{layer}.{name}" for layer in layers for name in _LAST}

  def fade(path: tuple[Any, ...], p: jax.Array) -> jax.Array:
    return gate * p if dotted(path) in names else p

  return jax.tree_util.tree_map_with_path(fade, model)


def faded_loss(
  model: Llama, batch: Batch, fading: Fading, gate: jax.Array, config: RecoverConfig
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Returns what a step minimises, summed over tokens, and its parts: loss (cross-entropy) and change.

  The change is what the layers that go add to the stream, squared and over the squared length of what entered them,
  on average over those layers.
  """
  model = computing(faded(model, fading.layers, gate), batch, config.compute_dtype, config.layout)
  ids_BT, target_BT, weight_BT, segments_BT = inputs(batch)
  going_L = jnp.isin(jnp.arange(len(model.layers)), jnp.array(fading.layers)).astype(jnp.float32)

  def change(before_BTD: jax.Array, after_BTD: jax.Array, going: jax.Array) -> jax.Array:
    before, after = before_BTD.astype(jnp.float32), after_BTD.astype(jnp.float32)
    # A longer stream would be another way to make a change small.
    length_BT = jax.lax.stop_gradient(jnp.sum(jnp.square(before), -1))
    return going * jnp.sum(weight_BT * jnp.sum(jnp.square(after - before), -1) / length_BT)

  x_BTD, changes_L = hidden_and(
    model, ids_BT, change, going_L, segments_BT=segments_BT, layout=config.layout, remat=config.remat
  )
  loss = next_token_loss(
    model.norm(x_BTD), model.head_DV(), target_BT, weight_BT, chunk=config.loss_chunk, z_loss=config.z_loss
  )
  told = {"loss": loss, "change": jnp.sum(changes_L) / len(fading.layers)}
  return loss + fading.penalty * told["change"], told
