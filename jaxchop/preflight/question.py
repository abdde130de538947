"""What is asked about a training, and its answer for one setting: the step compiled, its parts, its operations."""

import dataclasses
import time
from pathlib import Path
from typing import Any

from jaxchop.compiler import compiler_options
from jaxchop.parallel.peak import peak
from jaxchop.parallel.sharding import bytes_per_device
from jaxchop.parallel.topology import chip_of, devices_of
from jaxchop.preflight.compiled import compiled
from jaxchop.preflight.shapes import Planned, Training, activations, plan
from jaxchop.preflight.work import product_flops


@dataclasses.dataclass(frozen=True, kw_only=True)
class Question:
  """What is to be compiled, and for which slices."""

  training: Training
  topology: str
  slices: int = 1

  def changed(self, **settings: Any) -> "Question":
    """Returns the question with other settings of recovery."""
    config = dataclasses.replace(self.training.config, **settings)
    return dataclasses.replace(self, training=dataclasses.replace(self.training, config=config))

  def of_layers(self, layers: int) -> "Question":
    """Returns the question about a model of so many layers."""
    student = self.training.student._replace(layers=layers)
    return dataclasses.replace(self, training=dataclasses.replace(self.training, student=student))


def answer(question: Question, cache: Path) -> dict[str, Any]:
  """Returns what is known of a training's step, as plain JSON; bytes are those of one device.

  Raises UsageError where the mesh fits neither slice nor batch nor model.
  """
  devices = devices_of(question.topology, question.slices)
  planned, config = plan(question.training, devices), question.training.config
  numbered = devices if planned.mesh is None else list(planned.mesh.devices.flat)
  start = time.monotonic()
  with planned.set():
    traced = planned.traced()
    lowered = traced.lower()
    options = compiler_options(deterministic=config.deterministic, device=devices[0])
  seconds = time.monotonic() - start
  return {
    "device_kind": devices[0].device_kind,
    "devices": len(devices),
    "chips": len(devices) // chip_of(devices[0]).devices,
    "mesh": {} if planned.mesh is None else {name: size for name, size in planned.mesh.shape.items() if size > 1},
    "parts": parts(planned),
    "flops_per_step": product_flops(traced.jaxpr.jaxpr),
    "model_flops_per_step": planned.model_flops,
    "peak_flops_per_second": peak(devices, config.compute_dtype).flops_per_second,
    "trace_seconds": seconds,
  } | compiled(lowered, [question.topology, question.slices], options, numbered, cache)


def parts(planned: Planned) -> dict[str, int]:
  """Returns what a device holds of a training, without asking a compiler."""
  state = planned.state
  return {
    "parameters": bytes_per_device(state.trained),
    "frozen": bytes_per_device(state.frozen),
    "optimizer": bytes_per_device(state.opt_state),
    "activations": activations(planned),
  }
