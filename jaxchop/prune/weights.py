"""What the weights alone tell of a layer: how large they are. Shapes: L layers."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxchop.compiler import Program
from jaxchop.model.llama import Llama
from jaxchop.model.tree import flatten


def counted(layer: Any) -> dict[str, Any]:
  """Returns the arrays of a layer that criteria over parameters count: the seven projections and the two norms.

  Biases are left out, as in the released code of Shortened LLaMA and of Reassessing Layer Pruning.
  """
  return {name: leaf for name, leaf in flatten(layer).items() if not name.endswith("bias")}


def magnitudes(model: Llama) -> dict[str, jax.Array]:
  """Returns l1_L and l2_L, the sums of |w| and of w² over each layer's projections and norms, and their count_L."""
  layers = [list(counted(layer).values()) for layer in model.layers]
  sums = Program(
    lambda layers: {
      "l1": jnp.stack([sum(jnp.sum(jnp.abs(w.astype(jnp.float32))) for w in layer) for layer in layers]),
      "l2": jnp.stack([sum(jnp.sum(jnp.square(w.astype(jnp.float32))) for w in layer) for layer in layers]),
    }
  )(layers)
  return {**sums, "count": jnp.array([float(sum(w.size for w in layer)) for layer in layers])}
