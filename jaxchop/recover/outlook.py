"""What a recovery is about to do, said before its first step: devices, what lies where, memory, kernels, work."""

import math
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from jaxchop.compiler import product_library
from jaxchop.model.kernel import Kernel, chosen
from jaxchop.parallel.mesh import CONTEXT
from jaxchop.parallel.peak import own, peak
from jaxchop.recover.run import Run
from jaxchop.recover.trainable import Flat
from jaxchop.wording import count, duration, size


def devices_of(mesh: Mesh | None) -> list[jax.Device]:
  """Returns the devices that a run works on."""
  return [jax.devices()[0]] if mesh is None else list(mesh.devices.flat)


def outlook(run: Run, program: Any, segments: bool) -> dict[str, Any]:
  """Returns what is known before a run's next step, as plain JSON; `program` is the compiled one.

  `segments`: batches say where documents end.

  Bytes of `memory` are those of one device, by the compiler's analysis; None where it gives none.
  """
  config, mesh = run.config, run.mesh
  devices, left = devices_of(mesh), config.steps - run.step
  tokens = config.batch_size * config.seq_len
  teacher = run.teacher.flops(config.seq_len) if run.teacher else 0.0
  flops = tokens * (run.way.flops(config.seq_len).total + teacher)
  top = peak(devices, config.compute_dtype)
  return {
    "devices": len(devices),
    "device_kind": devices[0].device_kind,
    "processes": len({device.process_index for device in devices}),
    "mesh": {} if mesh is None else {axis: length for axis, length in mesh.shape.items() if length > 1},
    "trainable": {"way": config.trainable, "parameters": _size(run.trained), "model": run.way.size},
    "placement": _placement({"weights": run.trained, "frozen weights": run.frozen, "optimizer": run.opt_state}),
    "memory": _memory(program, own(devices)),
    "attention": attention_kernel(run, segments).words,
    "products": product_library(),
    "compute_dtype": config.compute_dtype,
    "steps": left,
    "tokens": left * tokens,
    "flops_per_step": flops,
    "flops": left * flops,
    "peak_flops_per_second": top.flops_per_second,
    "peak": top.words,
  }


def attention_kernel(run: Run, segments: bool) -> Kernel:
  """Returns what computes the attention of a run's steps."""
  spread = run.mesh is not None and run.mesh.shape[CONTEXT] > 1
  device, width = devices_of(run.mesh)[0], run.way.like.config.head_dim
  return chosen(device, run.config.compute_dtype, width, parted=segments, spread=spread)


def in_words(known: Mapping[str, Any]) -> list[str]:
  """Returns the lines that a person reads."""
  mesh = ", ".join(f"{axis} {length}" for axis, length in known["mesh"].items())
  kind = "CPU" if known["device_kind"] == "cpu" else known["device_kind"]
  hosts = f" in {known['processes']} processes" if known["processes"] > 1 else ""
  trains = known["trainable"]
  seconds = duration(known["flops"] / known["peak_flops_per_second"])
  steps = f"{known['steps']:,} steps, {count(known['tokens'])} tokens, {known['flops']:.1e} FLOP"
  return [
    f"devices: {known['devices']} × {kind}{hosts}" + (f", mesh {mesh}" if mesh else ""),
    f"trains: {count(trains['parameters'])} parameters ({trains['way']}) of a model of {count(trains['model'])}",
    *(
      f"{one['what']}: {one['arrays']} arrays, {size(one['bytes'])}, {_where(one['cut'])}, "
      f"{size(one['bytes_per_device'])} a device"
      for one in known["placement"]
    ),
    f"memory a device: {_memory_in_words(known['memory'])}",
    f"kernels: attention by {known['attention']}; products by {known['products']} in {known['compute_dtype']}",
    f"to come: {steps}; at least {seconds} at the peak of {known['peak']}",
  ]


def _where(cut: str) -> str:
  return f"cut over {cut}" if cut else "whole on every device"


def _size(flat: Flat) -> int:
  return sum(leaf.size for leaf in flat.values())


def _placement(state: Mapping[str, Any]) -> list[dict[str, Any]]:
  """Returns how many arrays of each part lie in which way."""
  found: dict[tuple[str, str], dict[str, Any]] = {}
  for what, tree in state.items():
    for leaf in jax.tree.leaves(tree):
      cut = _cut(leaf)
      one = found.setdefault((what, cut), {"what": what, "cut": cut, "arrays": 0, "bytes": 0, "bytes_per_device": 0})
      one["arrays"] += 1
      one["bytes"] += leaf.size * leaf.dtype.itemsize
      one["bytes_per_device"] += math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
  return sorted(found.values(), key=lambda one: (-list(state).index(one["what"]), one["bytes"]), reverse=True)


def _cut(leaf: jax.Array) -> str:
  """Returns the mesh axes that an array is cut over."""
  spec = getattr(leaf.sharding, "spec", ())
  axes = [name for part in spec for name in ((part,) if isinstance(part, str) else part or ())]
  return ", ".join(sorted(axes))


def _memory(program: Any, device: jax.Device) -> dict[str, int] | None:
  analysis = program.memory_analysis()
  if analysis is None:
    return None
  found = {
    "arguments": analysis.argument_size_in_bytes,
    "temporaries": analysis.temp_size_in_bytes,
    # Results that take the place of donated arguments need no room of their own.
    "results": analysis.output_size_in_bytes - analysis.alias_size_in_bytes,
  }
  found["peak"] = sum(found.values())
  limit = (device.memory_stats() or {}).get("bytes_limit") if device.platform != "cpu" else None
  return found | ({"limit": limit} if limit else {})


def _memory_in_words(memory: Mapping[str, int] | None) -> str:
  if memory is None:
    return "not known"
  limit = f" of {size(memory['limit'])}" if "limit" in memory else ""
  return (
    f"{size(memory['peak'])}{limit} at the peak by the compiler's estimate; {size(memory['arguments'])} arguments, "
    f"{size(memory['temporaries'])} temporaries"
  )
