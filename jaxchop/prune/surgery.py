"""The prune itself: a slice of the layer list."""

from collections.abc import Sequence

import jax
from flax import nnx

from jaxchop.model.llama import Llama


def keep_layers(model: Llama, keep: Sequence[int]) -> Llama:
  """Returns a new model with only the blocks `keep` (0-based, in this order); arrays are shared with `model`.

  Sharing means that neither may be donated while the other is in use. Raises IndexError on a layer outside the model.
  """
  small = jax.tree.map(lambda leaf: leaf, model)
  small.layers = nnx.List(small.layers[layer] for layer in keep)
  return small
