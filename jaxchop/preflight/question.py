"""What is asked about a training, and its answer for one setting: the step compiled, its parts, its operations."""

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxchop.compiler import compiler_options
from jaxchop.config import EvaluateConfig
from jaxchop.evaluate.perplexity import window_nll
from jaxchop.evaluate.speed import lowered as speed_programs
from jaxchop.model.tree import abstract
from jaxchop.parallel.peak import peak
from jaxchop.parallel.sharding import bytes_per_device
from jaxchop.parallel.topology import chip_of, devices_of
from jaxchop.preflight.compiled import compiled
from jaxchop.preflight.shapes import Planned, Training, activations, on_one, plan
from jaxchop.preflight.work import kernel_flops, product_flops
from jaxchop.recover.feed import batch_shapes
from jaxchop.recover.program import lowered_loss
from jaxchop.training import RecoverConfig


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


def answer(question: Question, cache: Path, keep: Path | None = None) -> dict[str, Any]:
  """Returns what is known of a training's step, as plain JSON; bytes are those of one device.

  `keep` is a file for the compiled program. Raises UsageError where the mesh fits neither slice nor batch nor model.
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
  found = compiled(lowered, options, numbered, cache, keep)
  top = peak(devices, config.compute_dtype).flops_per_second
  if found["schedule"] is not None:
    # The compiler has no estimate of these; faster than the peak they are not.
    found["schedule"]["seconds"]["attention kernels"] = kernel_flops(traced.jaxpr.jaxpr) / top
  return found | {
    "device_kind": devices[0].device_kind,
    "devices": len(devices),
    "idle": planned.idle(devices),
    "chips": len(devices) // chip_of(devices[0]).devices,
    "mesh": {} if planned.mesh is None else {name: size for name, size in planned.mesh.shape.items() if size > 1},
    "parts": parts(planned),
    "flops_per_step": product_flops(traced.jaxpr.jaxpr),
    "model_flops_per_step": planned.model_flops,
    "peak_flops_per_second": top,
    "trace_seconds": seconds,
  }


def others(
  question: Question, evaluate: EvaluateConfig, names: Sequence[str], cache: Path
) -> dict[str, dict[str, Any]]:
  """Returns what compiling the other programs of a recipe tells, by their names.

  `held_out` measures between two steps, on all devices; `evaluation` and `decode` run as the recipe's stages run them,
  in float32 on one device.
  """
  devices, found = devices_of(question.topology, question.slices), {}
  for name in names:
    lowered, numbered = _lowered(question, evaluate, name, devices)
    found[name] = compiled(lowered, compiler_options(device=devices[0]), numbered, cache)
  return found


def _lowered(
  question: Question, evaluate: EvaluateConfig, name: str, devices: Sequence[jax.Device]
) -> tuple[Any, Sequence[jax.Device]]:
  """Returns a program and the devices that it runs on, in the order of its numbers."""
  if name == "held_out":
    planned = plan(question.training, devices)
    with planned.set():
      shapes = batch_shapes(_micro(question.training), planned.mesh, segments=False)
      lowered = lowered_loss(question.training.config, planned.way, planned.state, shapes)
    return lowered, devices if planned.mesh is None else list(planned.mesh.devices.flat)
  device = devices[0]
  model = on_one(abstract(*question.training.student), device)
  if name == "decode":
    ids_BT = jax.ShapeDtypeStruct((1, evaluate.prompt_tokens), np.int32)
    return speed_programs(model, on_one(ids_BT, device), evaluate.new_tokens, device)[1], [device]
  size = evaluate.batch_size, evaluate.window
  ids_BW, weight_BW = jax.ShapeDtypeStruct(size, np.int32), jax.ShapeDtypeStruct(size, np.float32)
  return window_nll.lower(model, *on_one((ids_BW, ids_BW, weight_BW), device), device=device), [device]


def _micro(training: Training) -> RecoverConfig:
  """Returns the settings of a batch that is one micro-batch."""
  return dataclasses.replace(training.config, batch_size=training.rows, accumulate=1)


def parts(planned: Planned) -> dict[str, int]:
  """Returns what a device holds of a training, without asking a compiler."""
  state = planned.state
  return {
    "parameters": bytes_per_device(state.trained),
    "frozen": bytes_per_device(state.frozen),
    "optimizer": bytes_per_device(state.opt_state),
    "activations": activations(planned),
  }
