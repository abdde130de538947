"""The formula counts what XLA counts of a program without loops, but for what that program computes needlessly."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from jaxchop.data.batch import batch_of
from jaxchop.model.config import LlamaConfig
from jaxchop.model.flops import Flops, forward_flops
from jaxchop.model.llama import Llama
from jaxchop.recover.objective import summed_loss

LAYERS, B, T = 3, 2, 128
CONFIG = LlamaConfig(
  vocab_size=512, width=128, mlp_width=384, heads=8, kv_heads=2, head_dim=32, norm_eps=1e-5, max_positions=T, tied=False
)


def counted(function, *arguments) -> float:
  """XLA's operations a token, of which those that are no products are a few in a hundred for this model."""
  return jax.jit(function).lower(*arguments).cost_analysis()["flops"] / (B * T)


def square(flops: Flops) -> Flops:
  """With all T keys a query, as a block of `causal_attention` computes them."""
  return flops._replace(attention=flops.attention * 2 * T / (T + 1))


def test_a_forward_pass_is_what_xla_counts() -> None:
  model, ids = Llama(CONFIG, LAYERS, rngs=nnx.Rngs(0)), jnp.zeros((B, T), jnp.int32)
  found = counted(lambda model, ids: model(ids, layout="unrolled"), model, ids)
  assert found == pytest.approx(square(forward_flops(CONFIG, LAYERS, T)).total, rel=0.04)


def test_a_training_step_is_what_xla_counts_but_for_the_recomputed_attention() -> None:
  model, batch = Llama(CONFIG, LAYERS, rngs=nnx.Rngs(0)), batch_of(jnp.zeros((B, T + 1), jnp.int32))

  def loss(model, batch):
    return summed_loss(model, batch, layout="unrolled", remat="none")

  expected = square(forward_flops(CONFIG, LAYERS, T).times(3))
  # The block of queries keeps nothing for its backward pass.
  expected = expected._replace(attention=4 / 3 * expected.attention)
  assert counted(jax.value_and_grad(loss), model, batch) == pytest.approx(expected.total, rel=0.06)


def test_six_operations_a_weight_and_token_and_causal_attention() -> None:
  kernels, attention, head = forward_flops(CONFIG, LAYERS, T).times(3)
  layer = 128 * (8 * 32) * 2 + 128 * (2 * 32) * 2 + 3 * 128 * 384
  assert (kernels, head) == (6 * LAYERS * layer, 6 * 128 * 512)
  # PaLM's 12 L N H T, halved.
  assert attention == pytest.approx(12 * LAYERS * 8 * 32 * (T + 1) / 2)
