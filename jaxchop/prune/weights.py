"""What the weights alone tell of a layer: how large they are. Shapes: L layers."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxchop.model.llama import Llama
from jaxchop.model.tree import flatten


def counted(layer: Any) -> dict[str, Any]:
  """Returns the arrays of a layer that criteria over parameters count: the seven projections and the two norms.

  Biases are left out, as in the released code of Shortened LLaMA and of Reassessing Layer Pruning.
  """
  return {name: leaf for name, leaf in flatten(layer).items() if not name.endswith("bias")}


def magnitudes(model: Llama) -> dict[str, jax.Array]:
  """Returns l1_L and l2_L, the sums of |w| and of w² over each layer's projections and norms, and their count_L."""
  layers = [counted(layer) for layer in model.layers]
  sums = [_sums(layer) for layer in layers]
  found = {name: jnp.stack([layer[name] for layer in sums]) for name in ("l1", "l2")}
  return {**found, "count": jnp.array([float(sum(w.size for w in layer.values())) for layer in layers])}


@jax.jit
def _sums(layer: dict[str, jax.Array]) -> dict[str, jax.Array]:
  weights = [w.astype(jnp.float32) for w in layer.values()]
  return {
    "l1": sum((jnp.sum(jnp.abs(w)) for w in weights), start=jnp.zeros(())),
    "l2": sum((jnp.sum(jnp.square(w)) for w in weights), start=jnp.zeros(())),
  }
