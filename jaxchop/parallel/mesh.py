"""The devices as a mesh with axes `data`, `fsdp`, `context` and `tensor`; one device alone needs none."""

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh
from numpy.typing import NDArray

from jaxchop.errors import UsageError
from jaxchop.model.config import LlamaConfig
from jaxchop.training import MeshConfig

log = logging.getLogger("jaxchop")
AXES = ("data", "fsdp", "context", "tensor")
# The axes that the rows of a batch are spread over.
ROWS = ("data", "fsdp")
# The one that the positions of a sequence are spread over.
CONTEXT = "context"


def make_mesh(
  config: MeshConfig, model: LlamaConfig, rows: int, length: int, devices: Sequence[jax.Device] | None = None
) -> Mesh | None:
  """Returns a mesh for batches of `rows` sequences of `length` tokens, or None where it would be a single device.

  An axis of -1 takes the devices that are left; where batch or model do not divide among all of them, one process takes
  as many as they do divide among, and says so unless it was given others than its own. Raises UsageError when the axes
  fit neither devices nor batch nor model.
  """
  here, devices = devices is None, jax.devices() if devices is None else devices
  together = len({device.process_index for device in devices}) > 1
  sizes = _filled({axis: getattr(config, axis) for axis in AXES}, model, rows, length, len(devices), together)
  count = math.prod(sizes.values())
  apart = sizes["data"] * sizes["fsdp"]
  if count > len(devices) or (count < len(devices) and together):
    raise UsageError(f"mesh: {_words(sizes)} take {count} devices, there are {len(devices)}; set one of them to -1")
  if rows % apart:
    raise UsageError(
      f"mesh: data {sizes['data']} and fsdp {sizes['fsdp']} cut a batch into {apart}, which does not divide its {rows} "
      "rows; change recover.batch_size, recover.accumulate or the mesh"
    )
  if misfit := _misfit(sizes, model, length):
    raise UsageError(misfit)
  if here and count < len(devices):
    log.info("mesh: %d of %d devices work: %s", count, len(devices), _words(sizes))
  if count == 1:
    return None
  return Mesh(arranged(sizes, devices[:count]), AXES, axis_types=(AxisType.Explicit,) * len(AXES))


def arranged(sizes: Mapping[str, int], devices: Sequence[Any]) -> NDArray[np.object_]:
  """Returns the devices in the shape of a mesh, neighbours along its later axes joined by the faster links.

  Several TPU slices lie one after the other along `data`, which alone crosses the network between them; within a slice
  `fsdp` lies over two axes of the torus where it can, one line of it after the other. On other machines `data` is over
  hosts, as the devices come host by host. Raises UsageError where copies of the model and slices do not go into each
  other.
  """
  shape, slices = tuple(sizes.values()), len(_numbers(devices))
  if devices[0].platform != "tpu" or not _box(devices):
    return np.array(devices, object).reshape(shape)
  if sizes["data"] % slices:
    raise UsageError(
      f"mesh.data is {sizes['data']}; the devices are {slices} slices joined by a slow network, over which only "
      f"copies of the model can lie: set it to a multiple of {slices}"
    )
  if slices == 1:
    return _in_lines(shape, devices)
  if sizes["data"] == slices:
    together = [[each for each in devices if each.slice_index == number] for number in _numbers(devices)]
    return np.concatenate([_in_lines((1, *shape[1:]), each) for each in together])
  inner, outer = (sizes["data"] // slices, *shape[1:]), (slices, *(1 for _ in shape[1:]))
  return mesh_utils.create_hybrid_device_mesh(inner, outer, devices, allow_split_physical_axes=True)


def _in_lines(shape: tuple[int, ...], devices: Sequence[Any]) -> NDArray[np.object_]:
  """Returns the devices of one slice; one mesh axis over all of a flat torus follows line after line of it.

  JAX would lay it in a ring, of which no part is a line, where model/scatter.py sums up along lines.
  """
  if max(shape) == len(devices) and len({device.coords[2] for device in devices}) == 1:
    lines = sorted(devices, key=lambda device: (*device.coords, device.core_on_chip))
    return np.array(lines, object).reshape(shape)
  return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)


def _numbers(devices: Sequence[Any]) -> list[int]:
  """Returns the numbers of the slices, in order."""
  return sorted({getattr(device, "slice_index", 0) for device in devices})


def _box(devices: Sequence[Any]) -> bool:
  """Returns whether TPU devices are whole boxes of the torus; a part of one has no axes to lay a mesh along."""
  places = {(*device.coords, device.core_on_chip) for device in devices}
  extent = np.ptp(np.array(sorted(places)), axis=0) + 1
  return len(devices) == math.prod(extent.tolist()) * len(_numbers(devices))


def _filled(
  sizes: dict[str, int], model: LlamaConfig, rows: int, length: int, devices: int, together: bool
) -> dict[str, int]:
  for axis, size in sizes.items():
    if size < 1 and size != -1:
      raise UsageError(f"mesh.{axis} is {size}; it is at least 1, or -1 for the devices that are left")
  open_axes = [axis for axis, size in sizes.items() if size == -1]
  if len(open_axes) > 1:
    raise UsageError(f"mesh: {' and '.join(open_axes)} are -1; one axis takes the devices that are left")
  if not open_axes:
    return sizes
  (axis,) = open_axes
  known = math.prod(size for size in sizes.values() if size != -1)
  left = sizes | {axis: max(devices // known, 1)}
  if together:
    return left
  smaller = (sizes | {axis: size} for size in range(left[axis], 0, -1))
  return next((s for s in smaller if rows % (s["data"] * s["fsdp"]) == 0 and not _misfit(s, model, length)), left)


def _misfit(sizes: dict[str, int], model: LlamaConfig, length: int) -> str | None:
  """Returns in words which mesh axis does not divide what it cuts."""
  cut = [
    ("context", "recover.seq_len", length),
    ("fsdp", "the model's width", model.width),
    ("tensor", "the model's key/value heads", model.kv_heads),
    ("tensor", "the model's heads", model.heads),
    ("tensor", "the model's MLP width", model.mlp_width),
  ]
  for axis, name, size in cut:
    if size % sizes[axis]:
      return f"mesh.{axis} is {sizes[axis]}, which does not divide {name}, {size}"
  if model.width % (both := sizes["fsdp"] * sizes["context"]):
    return f"mesh.fsdp x mesh.context is {both}, which does not divide the model's width, {model.width}"
  return None


def _words(sizes: dict[str, int]) -> str:
  return ", ".join(f"{axis} {size}" for axis, size in sizes.items())
