"""Which versions of what made a file."""

import importlib.metadata
import os
import platform

import jax

_PACKAGES = ("jaxchop", "jax", "flax", "optax", "orbax-checkpoint", "transformers", "numpy")


def versions() -> dict[str, str]:
  """Returns {package: version}, Python among them."""
  return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in _PACKAGES}


def machine() -> str:
  """Returns what computed, in a few words: processors, and accelerators if any."""
  device = jax.devices()[0]
  kind = "CPU" if device.platform == "cpu" else f"{jax.device_count()} × {device.device_kind}"
  return f"{kind}, {os.cpu_count()} processors"
