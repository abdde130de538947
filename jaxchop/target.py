"""Which devices the programs that are traced here are for: those of the mesh that is set, or this process's own.

A kernel is chosen while a program is traced, and preflight traces on a CPU what a TPU is to run.
"""

import contextlib
from typing import Any

import jax
from jax.sharding import AbstractDevice, AbstractMesh

# Kinds of TPU whose slices are a torus of two axes.
_FLAT = ("TPU v5 lite", "TPU v6 lite")


def target() -> AbstractDevice | jax.Device:
  """Returns the kind of device that what is traced now is for; it has a `platform` and a `device_kind`."""
  said = jax.sharding.get_abstract_mesh().abstract_device
  return jax.devices()[0] if said is None else said


def on_cpu() -> bool:
  """Returns whether these devices are CPUs."""
  return target().platform == "cpu"


def on_flat_torus() -> bool:
  """Returns whether these devices are chips of a TPU whose slices have links along two axes."""
  return target().device_kind in _FLAT


def made_for(device: jax.Device | None) -> Any:
  """Returns the context in which programs without a mesh are for `device`; None means this process's own."""
  if device is None or not jax.sharding.get_abstract_mesh().empty:
    return contextlib.nullcontext()
  kind = AbstractDevice(device_kind=device.device_kind, num_cores=None, platform=device.platform)
  return jax.sharding.use_abstract_mesh(AbstractMesh((), (), abstract_device=kind))
