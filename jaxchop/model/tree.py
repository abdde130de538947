"""A model as a flat dict {dotted name: array}: what checkpoints, digests and name tables work on.

Names are the module's own paths, as `layers.3.attention.q.kernel`; a tied head has no name of its own.
"""

import functools
from collections.abc import Mapping
from typing import Any, TypeVar

import jax
from flax import nnx

from jaxchop.model.config import LlamaConfig
from jaxchop.model.llama import Llama

Tree = TypeVar("Tree")


def dotted(path: tuple[Any, ...]) -> str:
  """Returns a tree path as a dotted name, without the `.value` that NNX puts inside each parameter."""
  keys = [str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path]
  return ".".join(keys[:-1] if keys[-1] == "value" else keys)


def flatten(tree: Any) -> dict[str, Any]:
  """Returns {dotted name: leaf} of any pytree, in the tree's order."""
  return {dotted(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def unflatten(like: Tree, flat: Mapping[str, Any]) -> Tree:
  """Returns a tree shaped as `like` with the leaves of `flat`; raises ValueError on a missing or extra name."""
  names = [dotted(path) for path, _ in jax.tree_util.tree_leaves_with_path(like)]
  missing, extra = [n for n in names if n not in flat], sorted(set(flat) - set(names))
  if missing or extra:
    raise ValueError(f"parameters do not fit the model: missing {missing[:5]}, unknown {extra[:5]}")
  return jax.tree.unflatten(jax.tree.structure(like), [flat[name] for name in names])


def abstract(config: LlamaConfig, layers: int) -> Llama:
  """Returns a model of `layers` layers whose leaves are shapes in float32: no memory is taken."""
  model = _copy(_one_layer(config))
  model.layers = nnx.List([_copy(model.layers[0]) for _ in range(layers)])
  return model


@functools.cache
def _one_layer(config: LlamaConfig) -> Llama:
  # Layers are all of one shape: tracing the initialisation of eighty takes a minute, and a check asks dozens of times.
  return nnx.eval_shape(lambda: Llama(config, 1, rngs=nnx.Rngs(0)))


def _copy(tree: Tree) -> Tree:
  return jax.tree.map(lambda leaf: leaf, tree)
