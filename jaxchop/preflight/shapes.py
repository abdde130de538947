"""A recipe's training as shapes in their places: the model, its teacher and the optimizer, no weight loaded."""

import contextlib
import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, SingleDeviceSharding

from jaxchop.hub.architectures import Shape
from jaxchop.model.tree import abstract
from jaxchop.parallel.mesh import make_mesh
from jaxchop.parallel.sharding import bytes_per_device, planned
from jaxchop.recover.feed import batch_shapes
from jaxchop.recover.program import State, begun, traced_step
from jaxchop.recover.step import objective_of
from jaxchop.recover.teacher import Teacher, beside
from jaxchop.recover.trainable import Way, way_of
from jaxchop.target import made_for
from jaxchop.training import RecoverConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training:
  """What is trained and how, as far as its program depends on it."""

  student: Shape
  config: RecoverConfig
  # The model that runs beside it, if one does.
  teacher: Shape | None = None
  # Whether batches say where documents end.
  segments: bool = False

  @property
  def rows(self) -> int:
    """Sequences of a micro-batch."""
    return self.config.batch_size // self.config.accumulate


@dataclasses.dataclass(frozen=True, eq=False)
class Planned:
  """A training on the devices that it is for."""

  training: Training
  way: Way
  mesh: Mesh | None
  state: State
  teacher: Teacher | None

  @property
  def model_flops(self) -> float:
    """The operations of a step by formula, a teacher's among them; see model/flops.py."""
    config = self.training.config
    beside = self.teacher.flops(config.seq_len) if self.teacher else 0.0
    return config.batch_size * config.seq_len * (self.way.flops(config.seq_len).total + beside)

  def idle(self, devices: Sequence[jax.Device]) -> int:
    """Returns how many of the devices would have nothing to do."""
    return len(devices) - (1 if self.mesh is None else self.mesh.size)

  def set(self) -> Any:
    """Returns the context in which its programs are traced."""
    (one,) = jax.tree.leaves(self.state.trained)[0].sharding.device_set if self.mesh is None else (None,)
    return made_for(one) if self.mesh is None else jax.set_mesh(self.mesh)

  def traced(self) -> Any:
    """Returns the training step as traced, to be lowered and compiled."""
    with self.set():
      return traced_step(
        self.training.config, self.way, self.state, self.mesh, segments=self.training.segments, teacher=self.teacher
      )


def plan(training: Training, devices: Sequence[jax.Device]) -> Planned:
  """Returns where all arrays of a training lie on devices, which need not be there.

  Raises UsageError where the mesh fits neither devices nor batch nor model.
  """
  student, config = training.student, training.config
  way = way_of(config, student.architecture, student.layers)
  mesh = make_mesh(config.mesh, student.architecture, training.rows, config.seq_len, devices)
  with contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh):
    trained, frozen = way.split(_placed(way.like, mesh, devices[0]))
    teacher = None
    if training.teacher is not None:
      whole = _placed(abstract(training.teacher.architecture, training.teacher.layers), mesh, devices[0])
      # Which of its layers stay changes no size.
      keep = range(student.layers)
      teacher, own = beside(whole, way.like, frozen, config.distill, keep)
      frozen = frozen | own
    trained, opt_state = begun(config, trained, mesh)
    if mesh is None:
      opt_state = on_one(opt_state, devices[0])
  return Planned(training, way, mesh, State(trained, opt_state, frozen), teacher)


def activations(planned: Planned) -> int:
  """Returns the bytes that a device keeps of a micro-batch's forward pass for the backward pass.

  They are what grows with the batch among what the two share; weights cast for both do not.
  """
  once, twice = (_residuals(planned, times * planned.training.rows) for times in (1, 2))
  return twice - once


def _residuals(planned: Planned, rows: int) -> int:
  """Returns the bytes a device that a forward pass over so many sequences keeps."""
  config = dataclasses.replace(planned.training.config, batch_size=rows, accumulate=1)
  batch = batch_shapes(config, planned.mesh, planned.training.segments)
  objective = objective_of(config, planned.way.join, planned.teacher)

  def kept(trained: Any, frozen: Any, batch: Any) -> Any:
    return jax.vjp(lambda trained: objective(trained, frozen, batch, np.int32(0))[0], trained)[1]

  with planned.set():
    return bytes_per_device(jax.eval_shape(kept, planned.state.trained, planned.state.frozen, batch))


def _placed(model: Any, mesh: Mesh | None, device: jax.Device) -> Any:
  return on_one(model, device) if mesh is None else planned(model, mesh)


def on_one(tree: Any, device: jax.Device) -> Any:
  """Returns shapes that all lie whole on one device."""
  place = SingleDeviceSharding(device)
  return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place), tree)
