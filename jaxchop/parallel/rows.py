"""Batches for a model that may lie over several devices: their rows are spread as its parameters are."""

import contextlib
import math
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from jaxchop.model.config import LlamaConfig
from jaxchop.model.llama import Llama
from jaxchop.parallel.mesh import ROWS, make_mesh
from jaxchop.parallel.sharding import own_rows, spread_rows
from jaxchop.training import MeshConfig


def mesh_under(model: Llama) -> Mesh | None:
  """Returns the mesh that a model is spread over, None where it lies on one device."""
  sharding = jax.tree.leaves(model)[0].sharding
  mesh = sharding.mesh if isinstance(sharding, NamedSharding) else None
  return mesh if isinstance(mesh, Mesh) and mesh.size > 1 else None


def own_mesh(config: LlamaConfig) -> Mesh | None:
  """Returns this process's accelerators as a mesh that a model to be measured is spread over, None of a single one.

  CPU devices of one process share its cores: there one does it all.
  """
  devices = jax.local_devices()
  return None if devices[0].platform == "cpu" else make_mesh(MeshConfig(), config, len(devices), 1, devices)


class Rows:
  """Puts batches of a fixed number of rows where a model wants them."""

  def __init__(self, model: Llama, at_least: int):
    """`count`, the rows of a batch, is the least number from `at_least` on that divides among the devices."""
    self._mesh = mesh_under(model)
    apart = 1 if self._mesh is None else math.prod(self._mesh.shape[name] for name in ROWS)
    self.count = -(-at_least // apart) * apart
    self._own = own_rows(self._mesh, self.count)

  def place(self, batch: Any) -> Any:
    """Returns arrays of `count` rows where they belong."""
    if self._mesh is None:
      return batch
    own = jax.tree.map(lambda part: np.asarray(part)[self._own], batch)
    return spread_rows(own, self._mesh, self._own, self.count)

  def filled(self, batch: Any) -> Any:
    """Returns arrays of at most `count` rows filled up with rows of zeros."""
    return jax.tree.map(lambda a: np.pad(a, [(0, self.count - len(a))] + [(0, 0)] * (a.ndim - 1)), batch)

  def on_devices(self) -> Any:
    """Returns the context in which programs of the model run."""
    return contextlib.nullcontext() if self._mesh is None else jax.set_mesh(self._mesh)
