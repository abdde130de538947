"""How many operations a second devices can do at most: by the maker's figures, or measured where there are none."""

import functools
import time
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

# Dense bfloat16 and float32 products of one device, in 1e12 operations a second, by the words of JAX's name for it; a
# longer name stands before a shorter one. At JAX's usual precision TPUs multiply float32 in one pass of bfloat16, and
# NVIDIA's GPUs from Ampere on in TF32. A device is one of two cores of a chip of TPU v2, v3 and 7x. Sources: the pages
# of each generation at docs.cloud.google.com/tpu; NVIDIA's data sheets, without sparsity. V100 and T4: float16.
_PEAKS = {
  "TPU v2": (22.5, 22.5),
  "TPU v3": (61.5, 61.5),
  "TPU v4 lite": (138, 138),
  "TPU v4": (275, 275),
  "TPU v5 lite": (197, 197),
  "TPU v5e": (197, 197),
  "TPU v5": (459, 459),
  "TPU v5p": (459, 459),
  "TPU v6 lite": (918, 918),
  "TPU v6e": (918, 918),
  "TPU7x": (1153.5, 1153.5),
  "V100": (125, 15.7),
  "T4": (65, 8.1),
  "A10": (125, 62.5),
  "A100": (312, 156),
  "L4": (121, 60),
  "L40S": (362, 183),
  "H100 PCIe": (756, 378),
  "H100 NVL": (835, 418),
  "H100": (989, 494),
  "H200": (989, 494),
  "GH200": (989, 494),
  "B200": (2250, 1125),
  "GB200": (2500, 1250),
}
# Length of the sides of the measured product, and the seconds that measuring takes.
_SIDE, _SECONDS = 1024, 0.2


class Peak(NamedTuple):
  """What all devices of a run can do together."""

  flops_per_second: float
  # Where the figure is from, in a few words.
  words: str


def peak(devices: Sequence[jax.Device], dtype: str) -> Peak:
  """Returns the peak of matrix products of `dtype` inputs; measured on an own device where its kind is not listed."""
  kind, count = devices[0].device_kind, len(devices)
  if (listed := _listed(kind, dtype)) is not None:
    return Peak(count * listed, f"{_rate(listed)} a device, by its data sheet")
  found = _measured(own(devices), dtype)
  if devices[0].platform == "cpu":
    # The devices of a process share its cores, all of which the product used.
    count = len({device.process_index for device in devices})
    return Peak(count * found, f"a measured {_rate(found)}" + (" a process" if count > 1 else ""))
  return Peak(count * found, f"a measured {_rate(found)} a device")


def own(devices: Sequence[jax.Device]) -> jax.Device:
  """Returns one of the devices that belongs to this process."""
  return next(device for device in devices if device.process_index == jax.process_index())


def _listed(kind: str, dtype: str) -> float | None:
  words = kind.replace("-", " ").split()
  for name, (half, single) in _PEAKS.items():
    parts = name.split()
    if any(words[at : at + len(parts)] == parts for at in range(len(words))):
      return 1e12 * (half if dtype == "bfloat16" else single)
  return None


@functools.cache
def _measured(device: jax.Device, dtype: str) -> float:
  """Returns the operations a second of the fastest of some square products."""
  # Whatever mesh is set is not that of one device.
  with jax.set_mesh(jax.make_mesh((1,), ("one",), devices=[device])):
    a = jnp.ones((_SIDE, _SIDE), dtype)
    product = jax.jit(jnp.dot).lower(a, a).compile()
    product(a, a).block_until_ready()
    best, end = float("inf"), time.monotonic() + _SECONDS
    while (start := time.monotonic()) < end or best == float("inf"):
      product(a, a).block_until_ready()
      best = min(best, time.monotonic() - start)
  return 2 * _SIDE**3 / best


def _rate(flops_per_second: float) -> str:
  if flops_per_second >= 1e12:
    return f"{flops_per_second / 1e12:.0f} TFLOP/s"
  return f"{flops_per_second / 1e9:.0f} GFLOP/s"
