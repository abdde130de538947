"""Digests of arrays that lie in parts on many devices: sums over their elements, the same however they are cut.

Each element's bits are mixed with its place in the whole array and summed up modulo 2^32, twice with different mixing:
one changed element always changes both sums, any other change goes unnoticed once in 2^64. So every process sums up the
parts on its own devices, where they are, and only the sums travel. Shapes: N axes of an array.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

# {copy: [sum, sum, elements that are not finite]} of what one process holds of each copy of an array.
Parts: TypeAlias = dict[str, list[int]]
# Odd constants of a 32-bit finaliser with full avalanche (MurmurHash3's).
_FIRST, _SECOND = np.uint32(0x85EBCA6B), np.uint32(0xC2B2AE35)
_LANES = (np.uint32(0), np.uint32(0x9E3779B9))
_BITS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}


@jax.jit
def _sums(x: jax.Array, start_N: jax.Array, stride_N: jax.Array) -> jax.Array:
  """Returns uint32 [3]: both sums of a part that begins at `start_N` of the whole, and how much is not finite."""
  place = jnp.zeros((), jnp.uint32)
  for axis in range(x.ndim):
    index = jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
    place = place + (index + start_N[axis]) * stride_N[axis]
  x = x.astype(jnp.uint8) if x.dtype == bool else x
  bits = jax.lax.bitcast_convert_type(x, _BITS[x.dtype.itemsize]).astype(jnp.uint32)
  mixed = bits ^ _mixed(place)
  sums = [jnp.sum(_mixed(mixed + lane), dtype=jnp.uint32) for lane in _LANES]
  return jnp.stack([*sums, jnp.sum(~jnp.isfinite(x), dtype=jnp.uint32)])


def _mixed(x: jax.Array) -> jax.Array:
  x = (x ^ (x >> 16)) * _FIRST
  x = (x ^ (x >> 13)) * _SECOND
  return x ^ (x >> 16)


def started(leaves: Mapping[str, Any], *, copies: bool) -> dict[str, list[tuple[int, jax.Array]]]:
  """Starts to sum up what this process holds of each array; the arrays may be donated afterwards.

  With `copies` every copy of a part is summed up, else only the first one.
  """
  # Each part is a program of its own device, whatever mesh is set around us.
  with jax.set_mesh(jax.sharding.Mesh(np.empty((), dtype=object), ())):
    return {name: [*_started(leaf, copies)] for name, leaf in leaves.items()}


def _started(leaf: Any, copies: bool) -> Iterable[tuple[int, jax.Array]]:
  shape = np.shape(leaf)
  strides = np.array([math.prod(shape[axis + 1 :]) % (1 << 32) for axis in range(len(shape))], np.uint32)
  if not isinstance(leaf, jax.Array):
    yield 0, _sums(leaf, np.zeros(len(shape), np.uint32), strides)
    return
  for shard in leaf.addressable_shards:
    if copies or shard.replica_id == 0:
      yield shard.replica_id, _sums(shard.data, np.array([cut.start or 0 for cut in shard.index], np.uint32), strides)


def finished(sums: Mapping[str, list[tuple[int, jax.Array]]]) -> dict[str, Parts]:
  """Waits for what was started and returns it, plain numbers."""
  found: dict[str, Parts] = {}
  for name, parts in sums.items():
    mine: dict[str, list[int]] = found.setdefault(name, {})
    for copy, values in parts:
      mine[str(copy)] = _added(mine.get(str(copy), [0, 0, 0]), np.asarray(values).tolist())
  return found


def combined(held: Iterable[Mapping[str, Parts]]) -> dict[str, dict[str, str]]:
  """Returns {array: {copy: digest}} of what all processes hold; "" for one with an element that is not finite."""
  totals: dict[str, Parts] = {}
  for process in held:
    for name, parts in process.items():
      total = totals.setdefault(name, {})
      for copy, values in parts.items():
        total[copy] = _added(total.get(copy, [0, 0, 0]), values)
  return {
    name: {copy: "" if bad else f"{one:08x}{two:08x}" for copy, (one, two, bad) in copies.items()}
    for name, copies in totals.items()
  }


def _added(one: list[int], other: list[int]) -> list[int]:
  return [(a + b) % (1 << 32) for a, b in zip(one, other, strict=True)]
