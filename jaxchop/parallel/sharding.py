"""Where each array of a training state lies on a mesh, and the audit that none lies everywhere by accident."""

import dataclasses
import math
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec
from numpy.typing import NDArray

from jaxchop.errors import JaxchopError
from jaxchop.model.axes import axes
from jaxchop.model.placement import spec_of, striped
from jaxchop.model.tree import dotted, flatten
from jaxchop.parallel.mesh import CONTEXT, ROWS

Tree = TypeVar("Tree")
# Arrays smaller than this may lie on every device whole: norms, biases, counters.
_SMALL = 1 << 20


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Rules:
  """Which mesh axes cut which axis of a parameter, see model/axes.py."""

  # Devices that share a sequence hold parts of the weights too.
  width: tuple[str, ...] = ("fsdp", "context")
  heads: tuple[str, ...] = ("tensor",)
  kv_heads: tuple[str, ...] = ("tensor",)
  mlp: tuple[str, ...] = ("tensor",)
  vocab: tuple[str, ...] = ("tensor",)


RULES = Rules()


def placement(name: str, shape: tuple[int, ...], mesh: Mesh | AbstractMesh, rules: Rules = RULES) -> NamedSharding:
  """Returns where the parameter with a dotted name goes; an axis that its mesh axes do not divide stays whole."""

  def cut(axis: str | None, size: int) -> tuple[str, ...] | None:
    names = _wide(getattr(rules, axis), mesh) if axis else ()
    return names if names and size % math.prod(mesh.shape[name] for name in names) == 0 else None

  return NamedSharding(mesh, PartitionSpec(*map(cut, axes(name), shape)))


def rows(mesh: Mesh) -> NamedSharding:
  """Returns the place of a batch [B, S]: its rows are cut; its tokens are only when the model reads them."""
  return NamedSharding(mesh, PartitionSpec(_wide(ROWS, mesh) or None, None))


def in_stripes(a_BT: jax.Array) -> jax.Array:
  """Returns an array of a batch with its positions spread over `context`, in stripes (model/placement.py).

  What follows the positions stays.
  """
  spec = spec_of(a_BT)
  if spec is None or (parts := jax.typeof(a_BT).sharding.mesh.shape[CONTEXT]) == 1:
    return a_BT
  return jax.sharding.reshard(striped(a_BT, parts), PartitionSpec(spec[0], CONTEXT))


def in_order(a_BT: jax.Array) -> jax.Array:
  """Undoes `in_stripes`: every device of `context` has all positions of its rows, as they follow each other."""
  spec = spec_of(a_BT)
  if spec is None or (parts := jax.typeof(a_BT).sharding.mesh.shape[CONTEXT]) == 1:
    return a_BT
  return striped(jax.sharding.reshard(a_BT, PartitionSpec(spec[0])), a_BT.shape[1] // parts)


def _wide(names: tuple[str, ...], mesh: Mesh | AbstractMesh) -> tuple[str, ...]:
  """An axis of one device cuts nothing, and named it would wander to other axes when an array is reshaped."""
  return tuple(name for name in names if mesh.shape[name] > 1)


def spread(model: Tree, mesh: Mesh, rules: Rules = RULES) -> Tree:
  """Returns the model with every parameter in its place; each process gives its share of what it holds whole."""

  def move(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
    place = placement(dotted(path), leaf.shape, mesh, rules)
    if place.is_fully_addressable or not leaf.is_fully_addressable:
      return jax.device_put(leaf, place)
    whole = np.asarray(leaf)
    return jax.make_array_from_callback(leaf.shape, place, lambda index: whole[index])

  return jax.tree_util.tree_map_with_path(move, model)


def planned(model: Tree, mesh: Mesh | AbstractMesh, rules: Rules = RULES) -> Tree:
  """Returns the model's arrays as shapes in their places: what a model of any size would be, without its memory."""

  def plan(path: tuple[Any, ...], leaf: Any) -> jax.ShapeDtypeStruct:
    place = placement(dotted(path), leaf.shape, mesh, rules)
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)

  return jax.tree_util.tree_map_with_path(plan, model)


def bytes_per_device(tree: Any) -> int:
  """Returns the bytes that each device holds of arrays, or of shapes with places."""

  def own(a: Any) -> tuple[int, ...]:
    return a.shape if a.sharding is None else a.sharding.shard_shape(a.shape)

  return sum(math.prod(own(a)) * a.dtype.itemsize for a in jax.tree.leaves(tree))


def own_rows(mesh: Mesh | None, count: int) -> NDArray[np.int64]:
  """Returns which of the `count` rows of a batch this process's devices read."""
  if mesh is None:
    return np.arange(count)
  parts = rows(mesh).addressable_devices_indices_map((count, 1)).values()
  cuts = {part[0].indices(count) for part in parts if part is not None}
  return np.unique(np.concatenate([np.arange(*cut) for cut in cuts]))


def spread_rows(batch: Tree, mesh: Mesh, own: NDArray[np.int64], count: int) -> Tree:
  """Returns a batch of `count` rows spread over the mesh; `batch` has this process's rows, `own`."""
  cut = rows(mesh).spec[0]

  def move(part_RS: np.ndarray) -> jax.Array:
    place = NamedSharding(mesh, PartitionSpec(cut, *[None] * (part_RS.ndim - 1)))

    def piece(index: tuple[slice, ...] | None) -> np.ndarray:
      assert index is not None
      return part_RS[np.searchsorted(own, np.arange(*index[0].indices(count))), *index[1:]]

    return jax.make_array_from_callback((count, *part_RS.shape[1:]), place, piece)

  return jax.tree.map(move, batch)


def told(mesh: Mesh | None, value: int) -> jax.Array:
  """Returns one number a device, this process's own devices having `value`."""
  if mesh is None:
    return jnp.full(1, value, jnp.int32)
  place = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
  return jax.make_array_from_callback((mesh.size,), place, lambda _: np.full(1, value, np.int32))


def told_shape(mesh: Mesh | None) -> jax.ShapeDtypeStruct:
  """Returns the shape of `told`, in its place."""
  if mesh is None:
    return jax.ShapeDtypeStruct((1,), jnp.int32)
  return jax.ShapeDtypeStruct((mesh.size,), jnp.int32, sharding=NamedSharding(mesh, PartitionSpec(mesh.axis_names)))


def concrete(tree: Tree, mesh: Mesh | AbstractMesh) -> Tree:
  """Returns abstract arrays with their places on this very mesh; what has none lies everywhere."""

  def place(leaf: Any) -> jax.ShapeDtypeStruct:
    spec = leaf.sharding.spec if leaf.sharding is not None else PartitionSpec()
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec))

  return jax.tree.map(place, tree)


def audit(state: Any, mesh: Mesh | AbstractMesh) -> None:
  """Raises JaxchopError, naming it, when a large array lies whole on every device although the mesh cuts weights."""
  if mesh.size == mesh.shape["data"]:
    return
  for name, leaf in flatten(state).items():
    size = math.prod(leaf.shape) * leaf.dtype.itemsize
    if size >= _SMALL and leaf.sharding.is_fully_replicated:
      raise JaxchopError(
        f"{name}: {size:,} bytes lie whole on each of {mesh.size} devices; cut it by a rule of parallel/sharding.py"
      )
