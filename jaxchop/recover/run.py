"""What a recovery carries from step to step, and where it begins: at its newest checkpoint or with the given model."""

import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxchop.config import RecoverConfig
from jaxchop.data.batch import Batch
from jaxchop.errors import JaxchopError, UsageError
from jaxchop.model.llama import Llama
from jaxchop.parallel.sharding import concrete
from jaxchop.recover.checkpoint import Checkpoints, Restored
from jaxchop.recover.curve import Curve
from jaxchop.recover.fork import Origin
from jaxchop.recover.step import Metrics, init_optimizer

log = logging.getLogger("jaxchop")
# Settings that change how a step is computed or kept, not which step it is: a run may go on with others.
FREE = {"accumulate", "layout", "remat", "mesh", "checkpoint_every", "keep_checkpoints"}


class Run:
  """The state after `step` steps, of which the last may still be running on the device; its curve; its checkpoints."""

  def __init__(
    self,
    model: Llama,
    config: RecoverConfig,
    folder: Path,
    identity: Mapping[str, Any],
    mesh: Mesh | None = None,
    origin: Origin | None = None,
  ):
    """With a mesh, the model is spread over it already and the mesh is set (`jax.set_mesh`).

    A run without a checkpoint of its own begins at its `origin`, if it is a fork.
    """
    self.config, self.identity, self.mesh = config, identity, mesh
    self.checkpoints = Checkpoints(folder / "checkpoints", config.keep_checkpoints)
    begun = _begin(self.checkpoints, model, config, identity, mesh, origin)
    self.step, self.model, self.opt_state = begun.step, begun.model, begun.opt_state
    self.curve = Curve(folder / "metrics.jsonl", self.step)
    self._saved = begun.step if begun.meta else None
    self._go: Any = jnp.asarray(True)
    self._running: tuple[Metrics, float] | None = None
    self._ready = 0.0

  @property
  def tokens(self) -> int:
    return self.step * self.config.batch_size * self.config.seq_len

  def dispatch(self, program: Callable[..., Any], batch: Batch) -> dict[str, Any] | None:
    """Queues the next step, then returns the curve's line of the one before, so that the device never waits."""
    began = time.monotonic()
    self.model, self.opt_state, metrics = program(self.model, self.opt_state, batch, self._go)
    line = self.settle()
    self._go, self._running, self.step = metrics.applied, (metrics, began), self.step + 1
    return line

  def settle(self) -> dict[str, Any] | None:
    """Waits for the running step and returns its line of the curve; raises JaxchopError when it was not applied.

    A step that was not applied has changed nothing, and neither has one queued behind it.
    """
    if self._running is None:
      return None
    (metrics, began), self._running = self._running, None
    loss, norm, rate, applied = (np.asarray(value).item() for value in metrics)
    now = time.monotonic()
    seconds, self._ready = now - max(began, self._ready), now
    if not applied:
      self.step -= 1
      raise JaxchopError(
        f"{self.curve.path.parent}: step {self.step + 1} has loss {loss} and gradient norm {norm}; step {self.step} "
        "is saved; lower recover.optimizer.learning_rate or look into the data"
      )
    line = {"step": self.step, "loss": loss, "loss_hex": loss.hex(), "grad_norm": norm, "learning_rate": rate}
    line |= {"tokens": self.tokens, "seconds": seconds}
    line |= {"tokens_per_second": self.config.batch_size * self.config.seq_len / seconds}
    self.curve.append(line)
    return line

  def save(self) -> None:
    """Starts to save the settled state, unless it is saved already."""
    if self.step != self._saved:
      self.curve.sync()
      meta = {**self.identity, "step": self.step, "tokens": self.tokens}
      self.checkpoints.save(self.step, self.model, self.opt_state, meta)
      self._saved = self.step

  def finish(self) -> None:
    """Settles, saves and waits until all of it is on disk."""
    try:
      self.settle()
    finally:
      self.save()
      self.checkpoints.wait()


def _begin(
  checkpoints: Checkpoints,
  model: Llama,
  config: RecoverConfig,
  identity: Mapping[str, Any],
  mesh: Mesh | None,
  origin: Origin | None,
) -> Restored:
  """Returns the newest checkpoint, or where a fork begins, or step 0 with the weights copied to float32.

  Raises UsageError when the checkpoint is of a run with other settings or another `identity`.
  """
  abstract = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, jnp.float32, sharding=p.sharding), model)
  init = jax.jit(lambda m: init_optimizer(config, m))
  state = jax.eval_shape(init, abstract)
  state = state if mesh is None else concrete(state, mesh)
  found = checkpoints.restore_latest(abstract, state)
  if found is None and origin is not None:
    log.info("Forking after step %d of %s", origin.step, origin.checkpoints.folder)
    return origin.restore(abstract, state)._replace(meta={})
  if found is None:
    # A copy, because steps donate their input and a pruned model shares its layers with the whole one.
    master = jax.tree.map(lambda p: jnp.array(p, jnp.float32, copy=True), model)
    return Restored(0, master, init(master), {})
  before, now = _what(found.meta), _what(identity)
  for name in before.keys() | now.keys():
    if before.get(name) != now.get(name):
      raise UsageError(
        f"{checkpoints.folder}: this run was begun with {name} {before.get(name)}, not {now.get(name)}; "
        "set it back or choose another folder"
      )
  log.info("Going on after step %d of %s", found.step, checkpoints.folder)
  return found


def _what(identity: Mapping[str, Any]) -> dict[str, Any]:
  """Returns what must be the same for two runs to be one."""
  config = {f"recover.{name}": value for name, value in identity["config"].items() if name not in FREE}
  return config | {name: value for name, value in identity.items() if name not in ("config", "step", "tokens")}
