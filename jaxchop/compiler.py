"""`jax.jit` as our programs use it: on a CPU, with the more exact of XLA's two libraries for matrix products.

The default one there rounds about twice as coarsely: SmolLM2's logits, up to 20, come out 1.6e-4 from float64's with it
and 0.5e-4 with the other, where torch's own float32 is 0.5e-4 away. The exact one is no slower as long as no operand is
much wider than it is high, which is why logits lie with the vocabulary first (model/loss.py).

Several CPU devices in one process need an option of their own, or their collectives may wait for each other for ever.
Nor is the exact library for them: some sharded programs come out of it with wrong numbers (of SmolLM2 a loss of 41,000
for 29,000, from 20 layers on), so under a mesh a CPU has the default one. That knows not every product of bfloat16.
A GPU sums up in whatever order its threads come, unless it is told not to. A TPU holds the code in the memory
of its arrays.
"""

import functools
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding

from jaxchop.target import made_for

R = TypeVar("R")

_EXACT = {"xla_cpu_experimental_ynn_fusion_type": ""}
# A donated array is written where it lies, after all that reads it. Without this the compiler does not see the order of
# an update's parts, and copies both moments of every weight first.
_IN_PLACE = {"xla_cpu_copy_insertion_use_region_analysis": True}
# The default schedule may start a collective while a loop that holds another one is still running, in an order that
# differs from device to device; in one of some thousand steps all of them then wait, and XLA aborts the process.
_ORDERED = {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}
# A training step takes 1.3 times as long with it on an H100 (SmolLM2, 16 sequences of 1024 in bfloat16).
_DETERMINED = {"xla_gpu_exclude_nondeterministic_ops": True}
# Code that is the same for several layers is emitted once: an eighth of it for an unrolled list.
_SMALLER: dict[str, str | bool] = {"xla_tpu_enable_deduplicated_calls": True}
# On 64 chips and more the compiler would gather some weights as a sum of arrays that are zero elsewhere: at twice the
# bytes, on the core, which has to fill these arrays too. Of 16 chips it changes nothing.
_GATHERED: dict[str, str | bool] = {"xla_tpu_prefer_async_allgather_to_allreduce": True}
# On a v6e and a v5p the core waits for weights to be gathered and gradients to be scattered, unless its SparseCores do
# it meanwhile: by the compiler's schedule a step of Llama-2-7B on 16 chips of v6e takes three quarters of the time, and
# less than half of the memory; on v5p they scatter where the core would sum up whole gradients. With asynchronous
# fusions, the other way, nothing scattered is hidden, and products are slower. What is for a torus of two or of three
# axes changes nothing on the other.
_BY_SPARSE_CORE: dict[str, str | bool] = {
  "xla_tpu_enable_sparse_core_collective_offload_all_gather": True,
  "xla_tpu_enable_sparse_core_collective_offload_2d_all_gather": True,
  "xla_tpu_enable_sparse_core_collective_offload_3d_all_gather": True,
  "xla_tpu_enable_sparse_core_collective_offload_reduce_scatter": True,
  "xla_tpu_enable_sparse_core_collective_offload_nd_reduce_scatter": True,
  "xla_tpu_use_tc_device_shape_on_sc": True,
  # Their code, too, is made once for all layers: four layers compile in 98 s on v5p then, not in 242.
  "xla_tpu_enable_sparse_core_computation_deduplication": True,
}


def _working_memory(mebibytes: int) -> dict[str, str | bool]:
  """Lets one operation use so much of a core's vector memory, beside what lies there for a later one.

  With the default, about 16 MiB of 128 on v5e, the compiler puts a gathered weight there, and then has no room for a
  product's best blocks: some take a fifth longer. Of much more a step gains little, and activations leave for HBM.
  """
  return {"xla_tpu_scoped_vmem_limit_kib": str(mebibytes * 1024)}


_BY_KIND: dict[str, dict[str, str | bool]] = {
  "TPU v5 lite": _working_memory(28),
  "TPU v5": {**_working_memory(48), **_BY_SPARSE_CORE},
  "TPU v6 lite": {**_working_memory(48), **_BY_SPARSE_CORE},
}


def compiler_options(*, deterministic: bool = False, device: jax.Device | None = None) -> dict[str, str | bool]:
  """Returns what `jax.jit(function, compiler_options=…)` takes on this process's devices, under the mesh that is set.

  That is, on a CPU exact float32 products and updates in place without a mesh, and under one collectives in one order
  where it has several devices of this process; on a GPU, if asked for, results that are the same each time; on a TPU
  smaller code, weights gathered as such, and what is best for its kind. Empty where there is nothing to say, or to a
  compiler that has no such choice. `device` is one of those that the program is for, where it is not for this process's
  own.
  """
  wanted: dict[str, str | bool] = {}
  platform = jax.default_backend() if device is None else device.platform
  if platform == "cpu" and jax.sharding.get_abstract_mesh().empty:
    wanted = {**_EXACT, **_IN_PLACE}
  elif platform == "cpu" and jax.local_device_count() > 1:
    wanted = {**_ORDERED}
  elif platform == "gpu" and deterministic:
    wanted = {**_DETERMINED}
  elif platform == "tpu":
    kind = (jax.devices()[0] if device is None else device).device_kind
    wanted = {**_SMALLER, **_GATHERED, **_BY_KIND.get(kind, {})}
  return {name: value for name, value in wanted.items() if _known(name, value, device)}


def product_library() -> str:
  """Returns whose matrix products programs with these options use on this process's devices, in a few words."""
  if jax.default_backend() != "cpu":
    return f"XLA for {jax.default_backend().upper()}"
  return "XLA's more exact library" if compiler_options().keys() & _EXACT.keys() else "XLA's default library"


@functools.cache
def _known(name: str, value: str | bool, device: jax.Device | None) -> bool:
  place = None if device is None else SingleDeviceSharding(device)
  if not (mesh := jax.sharding.get_mesh()).empty:
    # Under a mesh nothing may lie elsewhere.
    place = NamedSharding(mesh, PartitionSpec())
  try:
    shape = jax.ShapeDtypeStruct((), jnp.int32, sharding=place)
    jax.jit(lambda x: x, compiler_options={name: value}).lower(shape).compile()
  except jax.errors.JaxRuntimeError:
    return False
  return True


class Program(Generic[R]):
  """A jitted function; devices and mesh are asked for their options at a call, not where it is defined."""

  def __init__(self, function: Callable[..., R], **options: Any):
    """`options` are those of `jax.jit`."""
    self._function, self._options = function, options
    self._by_options: dict[tuple[str, ...], Any] = {}
    functools.update_wrapper(self, function)

  def _jitted(self, device: jax.Device | None = None) -> Any:
    options = compiler_options(device=device)
    if tuple(options) not in self._by_options:
      self._by_options[tuple(options)] = jax.jit(self._function, compiler_options=options, **self._options)
    return self._by_options[tuple(options)]

  def __call__(self, *args: Any, **kwargs: Any) -> R:
    return self._jitted()(*args, **kwargs)

  def lower(self, *args: Any, device: jax.Device | None = None, **kwargs: Any) -> Any:
    """Returns the lowered program of these arguments, which may be abstract; for `device`, where they lie elsewhere."""
    with made_for(device):
      return self._jitted(device).lower(*args, **kwargs)

  @property
  def compiled(self) -> int:
    """How many programs there are so far: one for each set of shapes and static arguments."""
    return sum(jitted._cache_size() for jitted in self._by_options.values())
