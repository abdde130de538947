"""Which kernel computes the attention of whole sequences: a device's own where it can, products of XLA's elsewhere."""

import functools
import logging
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AbstractDevice

log = logging.getLogger("jaxchop")
# Queries and keys that splash attention takes at a time. On v6e blocks of 1024 are faster by a third (measured in
# apple/axlearn, pull request 958); elsewhere MaxText's default.
_BLOCK, _BLOCKS = 512, {"TPU v6 lite": 1024}
# Of GPUs before Ampere, which cuDNN's attention is not for, those that a cloud still lends; and the widest head that it
# takes on all others. Its gradient is the same each time where XLA is told so (openxla/xla, pull request 14125).
_BEFORE_AMPERE = ("P100", "V100", "T4")
_WIDEST = 128


class Kernel(NamedTuple):
  """A choice, and its reason where it is not the one made for these devices."""

  name: Literal["splash", "cudnn", "blocks"]
  # Queries and keys that splash takes at a time at most.
  block: int = 0
  why: str = ""

  @property
  def words(self) -> str:
    """The choice in a few words, with its reason."""
    known = {"splash": f"splash, blocks of {self.block}", "cudnn": "cuDNN", "blocks": "XLA in blocks of queries"}
    return known[self.name] + (f", not {self.why}" if self.why else "")


def chosen(
  device: AbstractDevice | jax.Device, dtype: jax.typing.DTypeLike, head_dim: int, *, parted: bool, spread: bool
) -> Kernel:
  """Returns what computes attention on a kind of device.

  `parted`: rows hold segments or padding. `spread`: sequences lie over several devices.
  """
  match device.platform:
    case "tpu":
      return Kernel("splash", _BLOCKS.get(device.device_kind, _BLOCK))
    case "gpu" | "cuda":
      why = _not_by_cudnn(device.device_kind, dtype, head_dim, parted=parted, spread=spread)
      return Kernel("blocks", why=f"cuDNN: {why}") if why else Kernel("cudnn")
  return Kernel("blocks")


def _not_by_cudnn(kind: str, dtype: jax.typing.DTypeLike, head_dim: int, *, parted: bool, spread: bool) -> str:
  """Returns why cuDNN does not do it; empty where it does."""
  if any(name in kind for name in _BEFORE_AMPERE):
    return f"{kind} is older than it takes"
  if jnp.dtype(dtype).itemsize != 2:
    return f"it takes no {jnp.dtype(dtype).name}, recover.compute_dtype bfloat16 does"
  if head_dim % 8 or head_dim > _WIDEST:
    return f"a head is {head_dim} wide, it takes multiples of 8 up to {_WIDEST}"
  if parted:
    return "rows hold several texts or padding"
  return "sequences are spread over mesh.context" if spread else ""


@functools.cache
def tell(kernel: Kernel) -> None:
  """Says once that a kernel is not the one made for these devices."""
  if kernel.why:
    log.warning("attention by %s", kernel.words)
