"""What a recovery carries from step to step, and where it begins: at its newest checkpoint or with the given model."""

import logging
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxchop.data.batch import Batch
from jaxchop.errors import JaxchopError, UsageError
from jaxchop.model.llama import Llama
from jaxchop.parallel.channel import ALONE, Channel
from jaxchop.parallel.sharding import told
from jaxchop.recover.checkpoint import Checkpoints, Keep, Restored
from jaxchop.recover.clock import Clock
from jaxchop.recover.curve import Curve, read_curve
from jaxchop.recover.fork import Origin
from jaxchop.recover.frozen import held
from jaxchop.recover.journal import Journal
from jaxchop.recover.program import begun
from jaxchop.recover.signals import Wish
from jaxchop.recover.step import Metrics, init_optimizer
from jaxchop.recover.teacher import Teacher
from jaxchop.recover.trainable import Flat, Way
from jaxchop.recover.watch import Watch
from jaxchop.training import RecoverConfig

log = logging.getLogger("jaxchop")
# Settings that change how a step is computed or kept, not which step it is: a run may go on with others.
FREE = {"accumulate", "layout", "loss_chunk", "remat", "mesh"}
FREE |= {"checkpoint_every", "keep_checkpoints", "keep_every", "keep_best"}
FREE |= {"evaluate_every", "evaluate_windows", "evaluate_suite", "deterministic"}
FREE |= {"skip_nonfinite", "spike", "track", "profile_steps", "program"}
# Measures a model and returns figures by name (evaluate/figures.py), each with its protocol; None once the other
# argument says that there is no time.
Along = Callable[[Llama, Callable[[], bool]], dict[str, dict[str, Any]] | None]
# A teacher and its own weights.
Taught = tuple[Teacher, Flat]
# What a checkpoint says of itself, not of its run.
_OF_A_STEP = {"step", "tokens", "watch", "held_out_loss", "frozen"}


class Run:
  """The state after `step` steps, of which the last may still be running on the device; its curve; its checkpoints."""

  def __init__(
    self,
    model: Llama,
    way: Way,
    config: RecoverConfig,
    folder: Path,
    identity: Mapping[str, Any],
    mesh: Mesh | None = None,
    origin: Origin | None = None,
    hosts: Channel = ALONE,
    teacher: Taught | None = None,
  ):
    """The model is prepared by its way; with a mesh, it is spread over it and the mesh is set (`jax.set_mesh`).

    A run without a checkpoint of its own begins at its `origin`, if it is a fork.
    """
    self.config, self.way, self.identity, self.mesh, self.hosts = config, way, identity, mesh, hosts
    self.checkpoints = Checkpoints(folder / "checkpoints", Keep.by(config), hosts)
    since, start = time.time(), time.monotonic()
    trained, frozen = way.split(model)
    begun = _begin(self.checkpoints, trained, config, identity, mesh, origin)
    self.step, self.trained, self.opt_state = begun.step, begun.model, begun.opt_state
    # The frozen weights, a teacher's own among them, which are no part of the model.
    self.frozen, self._frozen = held(folder, frozen, begun.meta, hosts)
    self.teacher, own = teacher or (None, {})
    self.frozen = self.frozen | own
    self.journal, self.clock = Journal(folder / "journal.jsonl"), Clock()
    curve = read_curve(folder / "metrics.jsonl")
    # The last step that any process has told of; the steps up to there are told a second time, by other numbers never.
    self.told = curve[-1]["step"] if curve else 0
    if self.step < config.steps:
      self.journal.begin(since, self.step, time.monotonic() - start if begun.meta else None, curve)
    self.curve = Curve(folder / "metrics.jsonl", self.step, writes=hosts.index == 0)
    # The strongest wish to stop that a process had when the last settled step was queued.
    self.wish = Wish.NONE
    # Called with every line of the curve.
    self.listeners: list[Callable[[Mapping[str, Any]], None]] = []
    # Model FLOPs a step over the peak of all devices together: the seconds that a step takes at least.
    self.least_seconds = math.nan
    self._saved = begun.step if begun.meta else None
    self._watch = Watch(config, begun.meta.get("watch"))
    self._skipped: Any = np.int32(self._watch.skipped)
    self._running: Metrics | None = None
    self._save_seconds = 0.0
    # The last step at which the held-out loss was measured, and that loss.
    self._held_out: tuple[int, float] = (-1, math.nan)

  @property
  def model(self) -> Llama:
    """The model as any other; it shares its arrays with what the next step donates."""
    return self.way.stock(self.trained, self.frozen)

  @property
  def tokens(self) -> int:
    return self.step * self.config.batch_size * self.config.seq_len

  def dispatch(self, program: Callable[..., Any], batch: Batch, wish: Wish) -> None:
    """Queues the next step, then settles the one before, so that the device never waits; `wish` is this process's."""
    self.clock.arrive()
    scalars = self._skipped, np.float32(self._watch.allowed(self.step + 1)), told(self.mesh, wish)
    self.trained, self.opt_state, metrics = program(self.trained, self.opt_state, batch, *scalars, self.frozen)
    self.clock.queue(metrics.loss)
    self.settle()
    self._skipped, self._running, self.step = metrics.skipped, metrics, self.step + 1

  def settle(self) -> None:
    """Waits for the running step and tells its line of the curve; raises JaxchopError when it stops the run.

    A step that was not applied has changed nothing, and neither has one queued behind the one that stops the run.
    """
    if self._running is None:
      return
    metrics, self._running = self._running, None
    loss, norm, rate, applied, wish, skipped = (np.asarray(value).item() for value in metrics[:-1])
    told = {name: _finite(np.asarray(value).item()) for name, value in metrics.told.items()}
    took, self.wish = self.clock.settle(), Wish(wish)
    if self.wish == Wish.FAIL:
      self.step -= 1
      return
    if skipped > self.config.skip_nonfinite:
      self.step -= 1
      raise JaxchopError(
        f"{self.curve.path.parent}: step {self.step + 1} has loss {loss} and gradient norm {norm}; step {self.step} "
        "is saved; lower recover.optimizer.learning_rate, look into the data, or let recover.skip_nonfinite skip more"
      )
    marks = self._watch.note(self.step, loss, applied=applied, skipped=skipped)
    # JSON has no number for what is not finite.
    line = {"step": self.step, "loss": _finite(loss), "loss_hex": loss.hex(), "grad_norm": _finite(norm)}
    line |= {"learning_rate": rate, "tokens": self.tokens, "seconds": took.seconds}
    line |= told
    line |= {"tokens_per_second": self.config.batch_size * self.config.seq_len / took.seconds}
    line |= {"mfu": _finite(self.least_seconds / took.seconds), "data_wait": took.data_wait, "time": time.time()}
    if self._save_seconds:
      line["save_seconds"], self._save_seconds = self._save_seconds, 0.0
    self.curve.append(line | marks)
    for tell in self.listeners:
      tell(line | marks)

  def measure(self, held_out: Callable[[], float | None]) -> None:
    """Measures the held-out loss of the settled state, unless there is no time for it and `held_out` gives None."""
    with self.journal.timed("evaluation", step=self.step):
      loss = held_out()
    if loss is not None:
      self._held_out = self.step, loss
      self.journal.note("held_out", step=self.step, loss=loss)
      log.info("step %d: held-out loss %.4f", self.step, loss)

  def look(self, along: Along, stopped: Callable[[], bool]) -> None:
    """Measures the settled model otherwise, unless there is no time for it and `along` gives None."""
    with self.journal.timed("evaluation", step=self.step):
      figures = along(self.model, stopped)
    if figures is not None:
      self.journal.note("measured", step=self.step, figures=figures)
      words = (f"{name} {one['value']:.4g}" for name, one in figures.items())
      log.info("step %d: %s", self.step, ", ".join(words))

  def save(self) -> None:
    """Starts to save the settled state, unless it is saved already."""
    if self.step != self._saved:
      start = time.monotonic()
      with self.journal.timed("save", step=self.step):
        self.curve.sync()
        meta = {**self.identity, "step": self.step, "tokens": self.tokens, "watch": self._watch.state()}
        meta |= {"frozen": self._frozen} if self._frozen else {}
        meta |= {"held_out_loss": self._held_out[1]} if self._held_out[0] == self.step else {}
        self.checkpoints.save(self.step, self.trained, self.opt_state, meta)
      self._saved, self._save_seconds = self.step, time.monotonic() - start

  def finish(self) -> None:
    """Settles, saves and waits until all of it is on disk."""
    try:
      self.settle()
    finally:
      self.save()
      with self.journal.timed("save", step=self.step):
        self.checkpoints.wait()


def _finite(value: float) -> float | None:
  return value if math.isfinite(value) else None


def _begin(
  checkpoints: Checkpoints,
  trained: Flat,
  config: RecoverConfig,
  identity: Mapping[str, Any],
  mesh: Mesh | None,
  origin: Origin | None,
) -> Restored:
  """Returns the newest checkpoint, or where a fork begins, or step 0 with the weights copied to float32.

  Raises UsageError when the checkpoint is of a run with other settings or another `identity`.
  """
  abstract, state = begun(config, trained, mesh)
  found = checkpoints.restore_latest(abstract, state)
  if found is None and origin is not None:
    log.info("Forking after step %d of %s", origin.step, origin.checkpoints.folder)
    return origin.restore(abstract, state)._replace(meta={})
  if found is None:
    # A copy, because steps donate their input and a pruned model shares its layers with the whole one.
    master = jax.tree.map(lambda p: jnp.array(p, jnp.float32, copy=True), trained)
    return Restored(0, master, jax.jit(lambda t: init_optimizer(config, t))(master), {})
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
  return config | {name: value for name, value in identity.items() if name not in _OF_A_STEP | {"config"}}
