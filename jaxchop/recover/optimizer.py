"""Optimizers with a decay mask, a learning rate that warms up and falls, and clipping of the global norm."""

import re
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxchop.errors import UsageError
from jaxchop.model.placement import spec_of
from jaxchop.model.tree import dotted
from jaxchop.training import GroupConfig, OptimizerConfig

# The root mean square of an update of Adam's, to which muon's are scaled: both then take the same rate and decay.
_ADAMS_RMS = 0.2


def learning_rate(config: OptimizerConfig, steps: int) -> optax.Schedule:
  """Returns the rate as a function of the updates already done.

  Update n of 1..steps runs at n / warmup_steps of the highest rate while that is below 1, then falls as `schedule` says
  and reaches `final_share` with the last update. No update runs at rate 0. `wsd` falls in the last `decay_share` of the
  steps, linearly (arXiv 2405.18392). Raises UsageError when that share is not between 0 and 1.
  """
  if not 0 < config.decay_share <= 1:
    raise UsageError(f"recover.optimizer.decay_share is {config.decay_share}; it is above 0 and at most 1")
  start = config.warmup_steps
  if config.schedule == "wsd":
    start = decay_start(steps, start, config.decay_share)

  def rate(count: Any) -> jax.Array:
    update = jnp.asarray(count, jnp.float32) + 1
    fallen = jnp.clip((update - start) / max(steps - start, 1), 0, 1)
    match config.schedule:
      case "cosine":
        course = 0.5 * (1 + jnp.cos(jnp.pi * fallen))
      case "constant":
        course = jnp.ones_like(fallen)
      case "linear" | "wsd":
        course = 1 - fallen
    warm = update / max(config.warmup_steps, 1)
    course = config.final_share + (1 - config.final_share) * course
    return config.learning_rate * jnp.where(update < config.warmup_steps, warm, course)

  return rate


def decay_start(steps: int, warmup_steps: int, decay_share: float) -> int:
  """Returns the last update that a wsd schedule runs at the highest rate."""
  return max(warmup_steps, steps - round(decay_share * steps))


def decayed(params: Any) -> Any:
  """Returns which parameters weight decay shrinks: matrices, the embedding among them; no norm and no bias.

  The embedding is decayed because a tied one is also the output projection, and because that is what the Llama-family
  recipes do; for a pruned model the pull is tiny either way.
  """
  return jax.tree.map(lambda p: p.ndim > 1, params)


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
  """Returns the optimizer of `steps` updates; weight decay is decoupled from the gradient in all of them."""
  if config.groups and config.learning_rate <= 0:
    raise UsageError(
      f"recover.optimizer.learning_rate is {config.learning_rate}; with groups it is above 0: theirs follow its course"
    )
  return optax.chain(
    optax.stateless(partial(_clipped, config.clip_norm)),
    _directions(config),
    optax.stateless(partial(_decayed_and_scaled, config)),
    optax.scale_by_learning_rate(learning_rate(config, steps)),
  )


def group_of(config: OptimizerConfig, name: str) -> GroupConfig | None:
  """Returns the first group that a parameter fits."""
  return next((group for group in config.groups if re.fullmatch(group.match, name)), None)


def _clipped(limit: float, updates: Any, params: Any = None) -> Any:
  """Returns gradients whose global norm is at most `limit`.

  As one factor, where optax.clip_by_global_norm divides each gradient: XLA fuses no division into what reads it, so
  clipped gradients would be written to memory and read again.
  """
  del params
  # In this form an infinite limit is none.
  share = 1 / jnp.maximum(optax.tree.norm(updates) / limit, 1)
  return jax.tree.map(lambda update: update * share, updates)


def _decayed_and_scaled(config: OptimizerConfig, updates: Any, params: Any) -> Any:
  """Returns the updates with the pull of weight decay, as large as their group's learning rate wants them."""

  def finished(path: tuple[Any, ...], update: jax.Array, p: jax.Array, shrinks: bool) -> jax.Array:
    group = group_of(config, dotted(path))
    rate = group.learning_rate if group is not None else None
    decay = group.weight_decay if group is not None else None
    decay = config.weight_decay if decay is None else decay
    update = update + decay * p if shrinks else update
    return update if rate is None else rate / config.learning_rate * update

  return jax.tree_util.tree_map_with_path(finished, updates, params, decayed(params))


def updates_done(opt_state: Any) -> jax.Array:
  """Returns how many updates the state of `make_optimizer` has seen."""
  return opt_state[-1].count


def _directions(config: OptimizerConfig) -> optax.GradientTransformation:
  """Returns what makes an update of rate 1 out of a gradient.

  Sources: AdamW, arXiv 1711.05101, eps outside the root as in torch; Lion, arXiv 2302.06675; Adafactor, arXiv
  1804.04235, without momentum, updates clipped to a root mean square of 1; Muon with updates as large as Adam's, arXiv
  2502.16982.
  """
  adam = optax.scale_by_adam(config.beta1, config.beta2, config.eps)
  match config.kind:
    case "adamw":
      return adam
    case "lion":
      return optax.scale_by_lion(config.beta1, config.beta2)
    case "adafactor":
      return optax.chain(optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0))
    case "muon":
      orthogonal = optax.contrib.scale_by_muon(beta=config.beta1, weight_dimension_numbers=_matrices)
      muon = optax.chain(
        _placed_by_the_compiler(orthogonal), optax.stateless(lambda updates, _: _as_large_as_adams(updates))
      )
      return optax.partition({"muon": muon, "adam": adam}, _by_muon)


def _matrices(params: Any) -> Any:
  """Says of every kernel that its first axis is the input's, its second one the output's."""
  return jax.tree.map(lambda _: optax.contrib.MuonDimensionNumbers(reduction_axis=0, output_axis=1), params)


def _placed_by_the_compiler(inner: optax.GradientTransformation) -> optax.GradientTransformation:
  """Returns a transformation whose products say nothing of a mesh; updates and state stay where they are."""

  def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
    places: Any = jax.tree.map(spec_of, (updates, state))
    if None in jax.tree.leaves(places, is_leaf=lambda place: place is None):
      return inner.update(updates, state, params)
    free: Any = jax.sharding.auto_axes(inner.update, out_sharding=places)
    return free(updates, state, params)

  return optax.GradientTransformation(inner.init, update)


def _as_large_as_adams(updates: Any) -> Any:
  """Returns orthogonal matrices, whose root mean square is 1 / sqrt of the longer side, made as large as Adam's."""
  return jax.tree.map(lambda u: u * _ADAMS_RMS * max(u.shape) ** 0.5, updates)


def _by_muon(params: Any) -> Any:
  """Returns which parameters muon updates: the kernels of the layers, which are maps between hidden states."""

  def label(path: tuple[Any, ...], p: Any) -> str:
    return "muon" if p.ndim == 2 and dotted(path).startswith("layers.") else "adam"

  return jax.tree_util.tree_map_with_path(label, params)
