"""Where each array of a training state lies on a mesh, and the audit that none lies everywhere by accident."""

import dataclasses
import math
from typing import Any, TypeVar

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxchop.errors import JaxchopError
from jaxchop.model.axes import axes
from jaxchop.model.tree import dotted, flatten
from jaxchop.parallel.mesh import ROWS

Tree = TypeVar("Tree")
# Arrays smaller than this may lie on every device whole: norms, biases, counters.
_SMALL = 1 << 20


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Rules:
  """Which mesh axis cuts which axis of a parameter, see model/axes.py."""

  width: str | None = "fsdp"
  heads: str | None = "tensor"
  kv_heads: str | None = "tensor"
  mlp: str | None = "tensor"
  vocab: str | None = "tensor"


RULES = Rules()


def placement(name: str, shape: tuple[int, ...], mesh: Mesh, rules: Rules = RULES) -> NamedSharding:
  """Returns where the parameter with a dotted name goes; an axis that a mesh axis does not divide stays whole."""
  cuts = [getattr(rules, axis) if axis else None for axis in axes(name)]
  wide = [cut if cut and mesh.shape[cut] > 1 else None for cut in cuts]
  spec = [cut if cut and size % mesh.shape[cut] == 0 else None for cut, size in zip(wide, shape, strict=True)]
  return NamedSharding(mesh, PartitionSpec(*spec))


def everywhere(mesh: Mesh) -> NamedSharding:
  """Returns the place of scalars: whole on every device."""
  return NamedSharding(mesh, PartitionSpec())


def rows(mesh: Mesh) -> NamedSharding:
  """Returns the place of a batch [B, S]: its rows are cut, its tokens are not."""
  # An axis of one device cuts nothing, and named here it would wander to other axes when rows and tokens merge.
  cuts = tuple(axis for axis in ROWS if mesh.shape[axis] > 1)
  return NamedSharding(mesh, PartitionSpec(cuts or None, None))


def spread(model: Tree, mesh: Mesh, rules: Rules = RULES) -> Tree:
  """Returns a copy of the model with every parameter in its place."""

  def move(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
    return jax.device_put(leaf, placement(dotted(path), leaf.shape, mesh, rules))

  return jax.tree_util.tree_map_with_path(move, model)


def concrete(tree: Tree, mesh: Mesh) -> Tree:
  """Returns abstract arrays with their places on this very mesh; what has none lies everywhere."""

  def place(leaf: Any) -> jax.ShapeDtypeStruct:
    spec = leaf.sharding.spec if leaf.sharding is not None else PartitionSpec()
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec))

  return jax.tree.map(place, tree)


def audit(state: Any, mesh: Mesh) -> None:
  """Raises JaxchopError, naming it, when a large array lies whole on every device although the mesh cuts weights."""
  if mesh.shape["fsdp"] * mesh.shape["tensor"] == 1:
    return
  for name, leaf in flatten(state).items():
    size = math.prod(leaf.shape) * leaf.dtype.itemsize
    if size >= _SMALL and leaf.sharding.is_fully_replicated:
      raise JaxchopError(
        f"{name}: {size:,} bytes lie whole on each of {mesh.size} devices; cut it by a rule of parallel/sharding.py"
      )
