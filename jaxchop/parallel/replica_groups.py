"""Which devices of a compiled program exchange among each other, in each of the three ways that XLA writes it."""

import math
import re

import numpy as np

_LISTED = re.compile(r"replica_groups=\{((?:\{[\d,]*\},?)*)\}")
_COUNTED = re.compile(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_OF_A_MESH = re.compile(
  r"replica_groups=(?:@\w+ ?)?mesh\[(?P<axes>[^\]]*)\]"
  r"(?P<order>, device_ids=\([^)]*(?:\([\d,]*\))?[^)]*\))? ?\{(?P<over>[^}]*)\}"
)
_PAIRS = re.compile(r"source_target_pairs=\{((?:\{\d+,\d+\},?)*)\}")


def replica_groups(attributes: str, devices: int) -> list[list[int]]:
  """Returns groups of device numbers out of an instruction's attributes; one of all devices where none are said.

  Raises ValueError where they are written in a way unknown here.
  """
  if said := _LISTED.search(attributes):
    return [_numbers(group) for group in re.findall(r"\{([\d,]*)\}", said[1])] or [list(range(devices))]
  if said := _COUNTED.search(attributes):
    ids = np.arange(devices).reshape(_numbers(said[2]))
    ids = ids.transpose(_numbers(said[3])) if said[3] else ids
    return ids.reshape(_numbers(said[1])).tolist()
  if said := _OF_A_MESH.search(attributes):
    return _of_a_mesh(said["axes"], said["order"] or "", said["over"], devices)
  if said := _PAIRS.search(attributes):
    return [_numbers(pair) for pair in re.findall(r"\{([\d,]+)\}", said[1])]
  if "replica_groups=" in attributes:
    where = attributes.partition("replica_groups=")[2][:80]
    raise ValueError(f"the compiler writes replica groups in a way unknown here: {where}")
  return [list(range(devices))]


def _of_a_mesh(axes: str, order: str, over: str, devices: int) -> list[list[int]]:
  """Groups along some axes of a mesh, or along parts of axes, as 'x':(2)4: 4 parts inside the first 2."""
  sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", axes)}
  parts: list[tuple[str, int, bool]] = []
  wanted = {}
  for name, before, size in re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", over):
    wanted.setdefault(name, []).append((int(before), int(size)) if size else (1, sizes[name]))
  for name, size in sizes.items():
    done = 1
    for before, length in sorted(wanted.get(name, [])):
      parts += [(name, before // done, False)] if before > done else []
      parts += [(name, length, True)]
      done = before * length
    parts += [(name, size // done, False)] if done < size else []
  ids = _ordered(order, devices).reshape([length for _, length, _ in parts] or [devices])
  inner = [place for place, (_, _, among) in enumerate(parts) if among]
  outer = [place for place in range(len(parts)) if place not in inner]
  count = math.prod(parts[place][1] for place in inner)
  return ids.transpose(outer + inner).reshape(-1, count).tolist()


def _ordered(order: str, devices: int) -> np.ndarray:
  if not order:
    return np.arange(devices)
  if said := re.search(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", order):
    ids = np.arange(devices).reshape(_numbers(said[1]))
    return (ids.transpose(_numbers(said[2])) if said[2] else ids).reshape(-1)
  return np.array(_numbers(re.sub(r"[^\d,]", "", order.partition("device_ids=")[2])))


def _numbers(text: str) -> list[int]:
  return [int(part) for part in text.split(",") if part]
