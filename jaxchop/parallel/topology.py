"""TPU slices by name, as v5e:4x4: their devices as the compiler knows them, and what a chip can do.

No TPU is needed: the devices are the compiler's own, and no program runs on them.
"""

import importlib.util
import math
import os
import re
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies

from jaxchop.errors import UsageError

# Without a TPU the library is to ask for nothing, to say nothing, and to let others use it too. It must be told before
# JAX is imported.
COMPILER_ALONE = {
  "JAX_PLATFORMS": "cpu",
  "TPU_SKIP_MDS_QUERY": "1",
  "TPU_WORKER_HOSTNAMES": "localhost",
  "TPU_WORKER_ID": "0",
  "TPU_ACCELERATOR_TYPE": "v5litepod-8",
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
  "TF_CPP_MIN_LOG_LEVEL": "3",
  "TPU_MIN_LOG_LEVEL": "3",
  "TPU_STDERR_LOG_LEVEL": "3",
}
_GIB = 2**30
_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8")
_SIDES = {"v5e": _FLAT, "v6e": _FLAT, "v5p": _CUBES, "v4": _CUBES, "tpu7x": _CUBES}
_NAMES = "v5e:2x2 v5e:4x4 v5e:16x16 v6e:4x4 v5p:2x2x4 v4:4x4x4 tpu7x:2x2x1"


class Chip(NamedTuple):
  """One kind of TPU device, which is a chip or, on 7x, one of its two cores."""

  # Bytes that programs may use; the compiler refuses to plan for more.
  hbm: int
  # Of the core clock, with which the compiler's cycles agree with the published peaks.
  cycles_per_second: float
  # Bytes a second over one axis of the torus, both ways together, and to other slices.
  ici_bytes_per_second: float
  dcn_bytes_per_second: float
  # Devices of a chip.
  devices: int = 1


# By the name of the kind. HBM, and the clocks of v4, v5e and v6e: measured by compiling; of the others, and all links:
# from the pages of each generation at docs.cloud.google.com/tpu and jax-ml.github.io/scaling-book, chapter 2.
_CHIPS = {
  "TPU v5 lite": Chip(int(15.75 * _GIB), 1.503e9, 9e10, 3.1e9),
  "TPU v6 lite": Chip(int(31.24 * _GIB), 1.751e9, 1.8e11, 12.5e9),
  "TPU v5": Chip(int(95.74 * _GIB), 1.751e9, 1.8e11, 6.2e9),
  "TPU v4": Chip(int(30.75 * _GIB), 1.05e9, 9e10, 3.1e9),
  "TPU7x": Chip(96 * _GIB, 1.9e9, 1.8e11, 6.2e9, 2),
}


def require_compiler() -> None:
  """Raises UsageError where the TPU compiler is not installed."""
  if importlib.util.find_spec("libtpu") is None:
    raise UsageError(
      "preflight asks the TPU compiler, which is not here: pip install 'jaxchop[tpu]' (no TPU is needed)"
    )


def devices_of(topology: str, slices: int = 1) -> list[jax.Device]:
  """Returns the devices of so many slices; raises UsageError on a name that the compiler does not know."""
  if slices < 1:
    raise UsageError(f"--slices is {slices}; it is at least 1")
  if not re.fullmatch(r"\w+:\d+(x\d+)*", topology):
    raise UsageError(f"--topology is {topology}; name a slice as one of {_NAMES}")
  given: dict[str, Any] = {} if slices == 1 else {"num_slices": slices}
  if set(topology.partition(":")[2].split("x")) == {"1"}:
    # A host has four chips unless it is told otherwise.
    given["chips_per_host_bounds"] = [1, 1, 1]
  if topology.startswith("v4:"):
    # Both cores of a chip are one device there, as on a TPU VM.
    given["chip_config_name"] = "megacore"
  try:
    return list(topologies.get_topology_desc(platform="tpu", topology_name=topology, **given).devices)
  except jax.errors.JaxRuntimeError as error:
    said = str(error).partition("\n")[0].removeprefix("INVALID_ARGUMENT: ")
    raise UsageError(f"--topology is {topology}: {said}; name a slice as one of {_NAMES}") from None


def larger(topology: str) -> list[str]:
  """Returns the next larger slices of the same kind, the smaller ones first."""
  kind, _, shape = topology.partition(":")
  sides = _SIDES.get(kind, ())
  return [f"{kind}:{other}" for other in sides if _volume(other) > _volume(shape)]


def _volume(shape: str) -> int:
  return math.prod(map(int, shape.split("x")))


def chip_of(device: jax.Device) -> Chip:
  """Returns what is known of a kind of device."""
  if device.device_kind not in _CHIPS:
    raise UsageError(f"--topology: nothing is known here of {device.device_kind}; name one of {_NAMES}")
  return _CHIPS[device.device_kind]


def environment() -> dict[str, str]:
  """Returns the environment of a process that compiles for TPUs."""
  return {**os.environ, **COMPILER_ALONE}
