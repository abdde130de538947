"""What a block computes with: its weights in the dtype of the residual stream, made where they are used.

A copy in another dtype is then as short-lived as the block's own pass, in the backward pass too where that computes the
block anew. A copy of all layers, made before, is 0.8 GB a chip of Llama-2-7B on 16 chips.
"""

from typing import TypeVar

import jax
import jax.numpy as jnp

from jaxchop.model.nf4 import Nf4

Tree = TypeVar("Tree")


def cast(tree: Tree, dtype: jax.typing.DTypeLike) -> Tree:
  """Returns modules with their weights in another dtype; numbers that are no weights stay, and kernels in four bits."""
  return jax.tree.map(lambda p: _cast(p, dtype), tree, is_leaf=lambda p: isinstance(p, Nf4))


def _cast(p: jax.Array | Nf4, dtype: jax.typing.DTypeLike) -> jax.Array | Nf4:
  return p if isinstance(p, Nf4) or not jnp.issubdtype(p.dtype, jnp.floating) else p.astype(dtype)


@jax.custom_vjp
def settled(weight: jax.Array) -> jax.Array:
  """Returns the weight itself; its gradient is finished before anything uses it.

  Without this, the compiler of a sharded program keeps every unrolled layer's unreduced gradient until the optimizer
  runs.
  """
  return weight


settled.defvjp(lambda weight: (weight, None), lambda _, grad: (jax.lax.optimization_barrier(grad),))
