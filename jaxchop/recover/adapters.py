"""Adapters as a way to train: which linear layers get one, how it begins, and the random bits of its dropout.

Shapes: B batch, I inputs, O outputs, R rank.
"""

import zlib
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec

from jaxchop.errors import UsageError
from jaxchop.model.adapter import Adapted, adapted
from jaxchop.model.llama import Linear, Llama
from jaxchop.model.nf4 import BLOCK, Nf4
from jaxchop.model.placement import spec_of
from jaxchop.training import AdapterConfig

# Leaves of an adapted layer that train.
TRAINED = ("a", "b", "magnitude")


def with_adapters(model: Llama, config: AdapterConfig, *, seed: int, dora: bool, quantised: bool) -> Llama:
  """Returns the model with an adapter at every target, which changes nothing yet; `quantised` kernels have four bits.

  As in peft, a is uniform within 1 / sqrt(I) and b is zero; a magnitude is the length of its column.
  """

  def change(name: str, linear: Linear) -> Any:
    target = name.rpartition(".")[2] in config.targets
    if not target and not quantised:
      return linear
    kernel: Any = _in_four_bits(name, linear) if quantised else linear.kernel
    new = Adapted(kernel, linear.bias, scale=config.alpha / config.rank, dropout=config.dropout)
    if target:
      inputs, outputs = linear.kernel.get_value().shape
      own = jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode()))
      bound = inputs**-0.5
      new.a = nnx.Param(jax.random.uniform(own, (inputs, config.rank), jnp.float32, -bound, bound))
      new.b = nnx.Param(jnp.zeros((config.rank, outputs)))
      if dora:
        new.magnitude = nnx.Param(jax.jit(_lengths)(kernel[...]))
    return new

  return adapted(model, change)


def row_noise(seed: int, step: jax.Array, ids_BS: jax.Array) -> jax.Array:
  """Returns noise_B2 for the rows of a step's batch: of the seed, the step and the row alone."""
  of_step = jax.random.fold_in(jax.random.key(seed), step)
  noise_B2 = jax.random.key_data(jax.vmap(lambda row: jax.random.fold_in(of_step, row))(jnp.arange(len(ids_BS))))
  spec = spec_of(ids_BS)
  return noise_B2 if spec is None else jax.sharding.reshard(noise_B2, PartitionSpec(spec[0], None))


def _in_four_bits(name: str, linear: Linear) -> Nf4:
  inputs = linear.kernel.get_value().shape[0]
  if inputs % BLOCK:
    raise UsageError(f"recover.trainable: qlora cuts inputs into blocks of {BLOCK}, {name} has {inputs}; take lora")
  return Nf4(linear.kernel[...])


def _lengths(kernel_IO: jax.Array) -> jax.Array:
  return jnp.sqrt(jnp.sum(jnp.square(kernel_IO.astype(jnp.float32)), axis=0))
