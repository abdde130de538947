"""The training step as a program of shapes: what a run compiles, and what preflight compiles without its weights."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxchop.compiler import compiler_options
from jaxchop.data.batch import Batch
from jaxchop.parallel.peak import own
from jaxchop.parallel.sharding import audit, concrete, told_shape
from jaxchop.recover.fading import Fading
from jaxchop.recover.feed import batch_shapes
from jaxchop.recover.objective import summed_loss
from jaxchop.recover.step import init_optimizer, make_step
from jaxchop.recover.teacher import Teacher
from jaxchop.recover.trainable import Flat, Way
from jaxchop.target import made_for
from jaxchop.training import RecoverConfig


class State(NamedTuple):
  """What a step takes beside its batch: arrays, or shapes in their places."""

  trained: Flat
  opt_state: Any
  # The weights that do not train, a teacher's own among them.
  frozen: Flat


def begun(config: RecoverConfig, trained: Flat, mesh: Mesh | None) -> tuple[Flat, Any]:
  """Returns the master weights and the optimizer state of a run that starts, as shapes in their places."""
  abstract = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, jnp.float32, sharding=p.sharding), trained)
  state = jax.eval_shape(lambda t: init_optimizer(config, t), abstract)
  return abstract, state if mesh is None else concrete(state, mesh)


def traced_step(
  config: RecoverConfig,
  way: Way,
  state: State,
  mesh: Mesh | None,
  *,
  segments: bool = False,
  teacher: Teacher | None = None,
  fading: Fading | None = None,
) -> Any:
  """Returns the training step as traced, to be lowered and compiled for the devices where `state` lies.

  The mesh is the one that is set. Raises JaxchopError where a large array lies whole on every device.
  """
  if mesh is not None:
    audit({"model": state.trained, "frozen": state.frozen, "optimizer": state.opt_state}, mesh)
  # Arrays that were restored are bound to their devices and new ones are not: compiled for what both have in common,
  # or a resumed run would be another program. The results lie where the arguments do, for the same reason.
  trained, opt_state, frozen = jax.tree.map(_described, state)
  places = jax.tree.map(lambda a: a.sharding, (trained, opt_state))
  device = own([*jax.tree.leaves(places)[0].device_set])
  step = jax.jit(
    make_step(config, way.join, teacher, fading),
    donate_argnums=(0, 1),
    out_shardings=(*places, None),
    compiler_options=compiler_options(deterministic=config.deterministic, device=device),
  )
  scalars = np.int32(0), np.float32(np.inf), told_shape(mesh)
  with made_for(device):
    return step.trace(trained, opt_state, batch_shapes(config, mesh, segments), *scalars, frozen)


def lowered_loss(config: RecoverConfig, way: Way, state: State, batch: Any) -> Any:
  """Returns the lowered program (trained, frozen, batch) -> summed loss, of a micro-batch of held-out windows."""
  device = own([*jax.tree.leaves(state.trained)[0].sharding.device_set])

  def measured(trained: Flat, frozen: Flat, batch: Batch) -> jax.Array:
    model = way.join(trained, frozen)
    return summed_loss(model, batch, compute_dtype=config.compute_dtype, layout=config.layout, remat="none")

  with made_for(device):
    return jax.jit(measured, compiler_options=compiler_options(device=device)).lower(state.trained, state.frozen, batch)


def _described(array: Any) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=array.sharding)
