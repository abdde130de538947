"""AdamW with a decay mask, a learning rate that warms up and falls, and clipping of the global norm."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxchop.config import OptimizerConfig


def learning_rate(config: OptimizerConfig, steps: int) -> optax.Schedule:
  """Returns the rate as a function of the updates already done.

  Update n of 1..steps runs at n / warmup_steps of the highest rate while that is below 1, then on half a cosine that
  reaches `final_share` with the last update. No update runs at rate 0.
  """

  def rate(count: Any) -> jax.Array:
    update = jnp.asarray(count, jnp.float32) + 1
    fallen = jnp.clip((update - config.warmup_steps) / max(steps - config.warmup_steps, 1), 0, 1)
    cosine = config.final_share + (1 - config.final_share) * 0.5 * (1 + jnp.cos(jnp.pi * fallen))
    warm = update / max(config.warmup_steps, 1)
    return config.learning_rate * jnp.where(update < config.warmup_steps, warm, cosine)

  return rate


def decayed(params: Any) -> Any:
  """Returns which parameters weight decay shrinks: matrices, the embedding among them; no norm and no bias.

  The embedding is decayed because a tied one is also the output projection, and because that is what the Llama-family
  recipes do; for a pruned model the pull is tiny either way.
  """
  return jax.tree.map(lambda p: p.ndim > 1, params)


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
  """Returns AdamW over `steps` updates. Source: arXiv 1711.05101, eps outside the root as in torch and optax."""
  return optax.chain(
    optax.clip_by_global_norm(config.clip_norm),
    optax.scale_by_adam(config.beta1, config.beta2, config.eps),
    optax.add_decayed_weights(config.weight_decay, decayed),
    optax.scale_by_learning_rate(learning_rate(config, steps)),
  )


def updates_done(opt_state: Any) -> jax.Array:
  """Returns how many updates the state of `make_optimizer` has seen."""
  return opt_state[1].count
