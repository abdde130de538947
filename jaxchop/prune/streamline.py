"""LLM-Streamline: a run of layers becomes one layer, trained to do alone what they did together.

Source: arXiv 2403.19135 (ICLR 2025) and its released code, but for the schedule, which there depends on the number of
devices. Shapes: N training sentences, B sentences a step, T tokens, D width.
"""

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from jaxchop.errors import JaxchopError, UsageError
from jaxchop.layers import without
from jaxchop.model.llama import Block, Llama, positions, walk
from jaxchop.model.rope import rotation
from jaxchop.progress import stage
from jaxchop.prune.merge import sentence_batches
from jaxchop.prune.subset import Turn
from jaxchop.prune.surgery import keep_layers


@dataclass(frozen=True, kw_only=True, slots=True)
class StreamlineConfig:
  """Which layers become one, and how it is trained."""

  # First layer of the run; the trained layer starts as it and takes its place.
  start: int
  # One past the last layer of the run.
  end: int
  # Passes over the sentences.
  epochs: int = 1
  # Sentences a step.
  batch_size: int = 8
  # Learning rate of the first and of the last step; between them it falls along half a cosine.
  learning_rate: float = 2e-4
  final_learning_rate: float = 5e-5
  # Decoupled weight decay of all of the layer's weights.
  weight_decay: float = 1e-3
  # Decides the order of the sentences.
  seed: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Streamlined:
  """A model with one trained layer in place of a run of layers."""

  model: Llama
  # Layers of the whole model that are still there; of the run, the first stands for the trained one.
  keep: tuple[int, ...]
  steps: int
  # Mean squared error a number of the residual stream, of the first and the last step's batch before the update.
  first_loss: float
  last_loss: float


def streamline(model: Llama, ids_NT: np.ndarray, mask_NT: np.ndarray, config: StreamlineConfig) -> Streamlined:
  """Returns `model` with the layers start..end-1 replaced by one, trained by MSE on the state that leaves the run.

  The layer is given the state that enters the run, and its target is the raw residual stream after it; both are
  recomputed for each batch. It is trained in float32 by AdamW. All other arrays are shared with `model`.

  `ids_NT` are sentences as int32, `mask_NT` is true where they are no padding, which is on the right. Raises UsageError
  on a run that is no run of at least two layers, JaxchopError on broken sentences or a loss that is not finite.
  """
  _check(config, len(model.layers), len(ids_NT))
  steps = config.epochs * (len(ids_NT) // config.batch_size)
  # Copies, as the step may write over what it is given.
  layer = jax.tree.map(lambda leaf: jnp.array(leaf, jnp.float32, copy=True), model.layers[config.start])
  opt_state, losses = optax.adamw(config.learning_rate).init(layer), []
  with stage("Training one layer in place of several", steps) as bar:
    for update, batch in enumerate(_batches(ids_NT, mask_NT, config)):
      settings = _rate(config, update, steps), config.weight_decay, config.start, config.end
      layer, opt_state, loss = _step(layer, opt_state, model, batch, *settings)
      losses.append(loss)
      # The loss of the step before: this one is still running.
      bar.advance(1, f"loss {_finite(losses[-2], config):.3g}" if len(losses) > 1 else "")
  kept = without(range(config.start + 1, config.end), len(model.layers))
  small = keep_layers(model, kept)
  trained = jax.tree.map(lambda new, old: new.astype(old.dtype), layer, model.layers[config.start])
  small.layers = nnx.List(trained if index == config.start else block for index, block in enumerate(small.layers))
  first, last = _finite(losses[0], config), _finite(losses[-1], config)
  return Streamlined(model=small, keep=kept, steps=steps, first_loss=first, last_loss=last)


def through(layers: Sequence[Block], x_BTD: jax.Array, turn: Turn) -> jax.Array:
  """Returns the residual stream after `layers`, of which there may be none."""
  return walk(layers, x_BTD, lambda layer, x_BTD, _: (layer(x_BTD, turn), None))[0] if layers else x_BTD


def _check(config: StreamlineConfig, layers: int, sentences: int) -> None:
  if not 0 <= config.start < config.end - 1 < layers:
    raise UsageError(
      f"streamline: start {config.start} and end {config.end} name no run of at least two of {layers} layers; the run "
      "is start..end-1, 0-based"
    )
  if config.epochs < 1:
    raise UsageError(f"merging.epochs is {config.epochs}; it must be at least 1")
  if not 1 <= config.batch_size <= sentences:
    raise UsageError(f"merging.batch_size is {config.batch_size}; with {sentences} sentences it lies in 1..{sentences}")


def _rate(config: StreamlineConfig, update: int, steps: int) -> float:
  """Returns the learning rate of update 0..steps-1, which the last one ends at the final rate."""
  fallen = 0.5 * (1 - math.cos(math.pi * update / max(steps - 1, 1)))
  return config.learning_rate + fallen * (config.final_learning_rate - config.learning_rate)


def _batches(
  ids_NT: np.ndarray, mask_NT: np.ndarray, config: StreamlineConfig
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Yields whole batches, each epoch in an order of its own; what is left over waits for the next epoch's order."""
  order = np.random.default_rng(config.seed)
  for _ in range(config.epochs):
    picks_N = order.permutation(len(ids_NT))[: len(ids_NT) // config.batch_size * config.batch_size]
    yield from sentence_batches(ids_NT[picks_N], mask_NT[picks_N], config.batch_size)


@functools.partial(jax.jit, static_argnames=("start", "end"), donate_argnums=(0, 1))
def _step(
  layer: Any,
  opt_state: Any,
  model: Llama,
  batch: tuple[jax.Array, jax.Array],
  rate: float,
  decay: float,
  start: int,
  end: int,
) -> tuple[Any, Any, jax.Array]:
  """Returns the layer and the optimizer state after one update, and the loss before it."""
  ids_BT, mask_BT = batch
  layers, turn = [*model.layers], rotation(model.config, positions(ids_BT))
  x_BTD = through(layers[:start], model.embed(ids_BT), turn)
  y_BTD = through(layers[start:end], x_BTD, turn).astype(jnp.float32)

  def loss_of(layer: Block) -> jax.Array:
    error_BTD = jnp.where(mask_BT[..., None], layer(x_BTD.astype(jnp.float32), turn) - y_BTD, 0.0)
    return jnp.sum(error_BTD**2) / (jnp.sum(mask_BT) * y_BTD.shape[-1])

  loss, gradient = jax.value_and_grad(loss_of)(layer)
  updates, opt_state = optax.adamw(rate, weight_decay=decay).update(gradient, opt_state, layer)
  return jax.tree.map(jnp.add, layer, updates), opt_state, loss


def _finite(loss: jax.Array, config: StreamlineConfig) -> float:
  if not np.isfinite(loss):
    raise JaxchopError(
      f"streamline: the loss of the layer in place of {config.start}..{config.end - 1} is not finite; lower "
      f"merging.learning_rate, which is {config.learning_rate}, or look for broken weights"
    )
  return float(loss)
