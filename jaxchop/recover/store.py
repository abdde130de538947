"""Orbax as a store of flat dicts {item: {dotted name: array}}: written by all processes together, read by each alone.

Read alone, because a process that finds a broken file would leave the others waiting in Orbax's barriers. Orbax counts
its operations to tell barriers apart: all processes must read as often as one another.
"""

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from jaxchop.recover.manifest import Damaged, Leaves

# What Orbax and TensorStore raise on damaged files.
UNREADABLE = (OSError, ValueError, KeyError, TypeError, RuntimeError, AssertionError)
# Bytes that a process reads back at once.
_GROUP = 1 << 30


def write(path: Path, items: Mapping[str, Mapping[str, Any]]) -> Any:
  """Starts to write; `.result()` waits until all of it is on disk, of all processes. Arrays may be donated at once."""
  context = ocp.Context()
  # Compression takes most of the time and shrinks weights by a tenth.
  context.array.saving.use_compression = False
  # Cutting the copies of an array among the devices takes a program for each, of all processes at once.
  context.array.saving.use_replica_parallel = False
  with context:
    return ocp.save_checkpointables_async(str(path), jax.tree.map(lambda leaf: leaf, dict(items)))


def read(path: Path, target: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the arrays of a target of abstract or numpy arrays, which says where they go; `...` leaves one out.

  Raises Damaged when they cannot be read.
  """
  here = jax.process_index()
  context = ocp.Context()
  context.multiprocessing.primary_host = here
  context.multiprocessing.active_processes = {here}
  context.multiprocessing.barrier_sync_key_prefix = f"process {here} alone"
  try:
    with context:
      return ocp.load_checkpointables(str(path), dict(target))
  except UNREADABLE as error:
    raise Damaged(f"it cannot be read: {one_line(error)}") from error


def groups(leaves: Leaves, index: int, count: int) -> list[dict[str, set[str]]]:
  """Returns which arrays process `index` of `count` reads back, about as many bytes as the others, a group at a time.

  All processes get as many groups as one another, also of nothing.
  """
  sizes = {(item, name): _bytes(leaf) for item, flat in leaves.items() for name, leaf in flat.items()}
  shares: list[list[tuple[str, str]]] = [[] for _ in range(count)]
  taken = [0] * count
  for key, size in sorted(sizes.items(), key=lambda entry: -entry[1]):
    least = taken.index(min(taken))
    shares[least].append(key)
    taken[least] += size
  cut = [_cut(share, sizes) for share in shares]
  mine = cut[index] + [[]] * (max(map(len, cut)) - len(cut[index]))
  return [{item: {name for other, name in group if other == item} for item in leaves} for group in mine]


def blank(leaves: Leaves, wanted: Mapping[str, set[str]]) -> dict[str, Any]:
  """Returns a target on the host for `read`, of the wanted arrays alone."""
  return {
    item: {name: np.empty(leaf["shape"], leaf["dtype"]) if name in wanted[item] else ... for name, leaf in flat.items()}
    for item, flat in leaves.items()
  }


def one_line(error: BaseException) -> str:
  return textwrap.shorten(str(error), 300, placeholder=" ...") or type(error).__name__


def _cut(share: list[tuple[str, str]], sizes: Mapping[tuple[str, str], int]) -> list[list[tuple[str, str]]]:
  """Returns a share in groups of at most `_GROUP` bytes, or one array."""
  found: list[list[tuple[str, str]]] = []
  room = 0
  for key in share:
    if not found or sizes[key] > room:
      found.append([])
      room = _GROUP
    found[-1].append(key)
    room -= sizes[key]
  return found


def _bytes(leaf: Mapping[str, Any]) -> int:
  return int(np.prod(leaf["shape"], dtype=np.int64)) * np.dtype(leaf["dtype"]).itemsize
