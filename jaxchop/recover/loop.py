"""The recovery of a pruned model: steps, their curve, checkpoints, and an end that can come at any moment."""

import contextlib
import dataclasses
import json
import logging
from collections.abc import Callable, Generator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray

from jaxchop.compiler import compiler_options
from jaxchop.data.batch import Batch
from jaxchop.errors import Interrupted, JaxchopError, Preempted, UsageError
from jaxchop.model.llama import Llama
from jaxchop.parallel.channel import ALONE, Channel
from jaxchop.parallel.mesh import make_mesh
from jaxchop.parallel.sharding import own_rows, spread
from jaxchop.progress import Bar, stage
from jaxchop.recover import saved
from jaxchop.recover.checkpoint import Unsaved
from jaxchop.recover.fading import Fading
from jaxchop.recover.feed import Batches, blank, next_batch, placed
from jaxchop.recover.fork import Origin, decay_only, origin_of
from jaxchop.recover.held_out import HeldOut
from jaxchop.recover.outcome import Recovered, outcome
from jaxchop.recover.outlook import devices_of, in_words, outlook
from jaxchop.recover.profile import Profile
from jaxchop.recover.program import State, traced_step
from jaxchop.recover.room import require_room
from jaxchop.recover.run import FREE, Along, Run
from jaxchop.recover.signals import Stop, Wish, stop_signals
from jaxchop.recover.teacher import beside, stands_beside
from jaxchop.recover.trackers import Trackers, require
from jaxchop.recover.trainable import way_of
from jaxchop.training import RecoverConfig

log = logging.getLogger("jaxchop")


def recover(
  model: Llama,
  batches: Batches,
  config: RecoverConfig,
  folder: Path,
  *,
  meta: Mapping[str, Any] | None = None,
  held_out: NDArray[np.int32] | None = None,
  hosts: Channel = ALONE,
  teacher: Llama | None = None,
  keep: Sequence[int] | None = None,
  fading: Fading | None = None,
  along: Along | None = None,
) -> Recovered:
  """Trains what `config.trainable` says for `config.steps` steps, from the newest checkpoint in `folder` if it has one.

  With `config.evaluate_every`, `held_out` are windows [N, seq_len + 1] whose loss is measured in between, and `along`
  measures the model in other ways.
  A fork (`config.fork`) begins with another run's checkpoint and counts its steps on from there.

  With `config.distill` it learns from `teacher` too, of which its layers were those in `keep`. With `fading`, layers
  fade out over the steps.

  `model` is left as it is. `folder` gets `checkpoints/` and `metrics.jsonl`. `meta`, plain JSON, says what is trained
  on what; every checkpoint keeps it, and a run goes on only where it is the same. Raises JaxchopError on a loss or
  gradient that is not finite, Preempted or Interrupted after SIGTERM or SIGINT; the last good step is saved before.
  Where `hosts` joins several processes, all of them call this alike, and what one of them hears or meets stops all of
  them after the same step.
  """
  config, identity, origin = _agreed(config, Path(folder), meta or {}, held_out, teacher, hosts)
  compile_seconds = 0.0
  way = way_of(config, model.config, len(model.layers))
  mesh = make_mesh(config.mesh, model.config, config.batch_size // config.accumulate, config.seq_len)
  with stop_signals() as stop, jax.set_mesh(mesh) if mesh is not None else contextlib.nullcontext():
    model = way.prepare(model)
    taught = beside(teacher, model, way.split(model)[1], config.distill, keep) if teacher is not None else None
    if mesh is not None:
      model = spread(model, mesh)
      taught = taught and (taught[0], spread(taught[1], mesh))
    run = Run(model, way, config, Path(folder), identity, mesh, origin, hosts, taught)
    with contextlib.closing(run.curve):
      if run.step < config.steps:
        require_room(run)
      try:
        if run.step < config.steps and not _heard(run, stop):
          program, compile_seconds = _compiled(config, run, batches.segments, fading)
          evaluating = held_out is not None and config.evaluate_every
          measured = HeldOut(held_out, run) if evaluating else None
          # The first product of all processes waits half a minute for the last of them, and compiling may differ more.
          hosts.gather("compiled", True)
          _train(run, program, batches, measured, along, stop)
      except Unsaved:
        raise
      except JaxchopError:
        run.finish()
        raise
      except jax.errors.JaxRuntimeError:
        hosts.blame()
        raise
      run.finish()
      run.journal.note("end", step=run.step)
    recovered = run.model
    if wish := _heard(run, stop):
      kind, name = (Preempted, "SIGTERM") if wish == Wish.TERMINATE else (Interrupted, "SIGINT")
      where = f"step {run.step} of {config.steps}, saved in {run.checkpoints.folder}"
      raise kind(f"{name} after {where}; run the same command again to go on")
  return outcome(run, recovered, compile_seconds)


def _agreed(
  config: RecoverConfig,
  folder: Path,
  meta: Mapping[str, Any],
  held_out: NDArray[np.int32] | None,
  teacher: Llama | None,
  hosts: Channel,
) -> tuple[RecoverConfig, dict[str, Any], Origin | None]:
  """Returns settings that all processes share, what a checkpoint keeps of them, and what a fork begins with."""
  if config.steps < 1:
    raise UsageError(f"recover.steps is {config.steps}; it takes at least one step to recover a model")
  require(config.track)
  _check_evaluation(config, held_out)
  if stands_beside(config.distill) != (teacher is not None):
    raise UsageError("recover.distill: give a teacher and a weight or hidden above 0, or neither")
  identity = json.loads(json.dumps({**meta, "config": dataclasses.asdict(config)}))
  origin = None
  if config.fork is not None:
    origin = origin_of(config, folder, meta, FREE, hosts)
    config, identity = decay_only(config, origin), identity | {"forked": origin.step}
  _refuse_another(hosts.gather("what is trained", identity))
  return config, identity, origin


def _check_evaluation(config: RecoverConfig, held_out: NDArray[np.int32] | None) -> None:
  if config.keep_best and not config.evaluate_every:
    raise UsageError("recover.keep_best: nothing says which checkpoint is best; set recover.evaluate_every")
  if config.evaluate_every and (held_out is None or held_out.shape[1:] != (config.seq_len + 1,)):
    raise UsageError(f"recover.evaluate_every: needs held-out windows of {config.seq_len + 1} tokens; give them")


def _heard(run: Run, stop: Stop) -> Wish:
  """Returns what this process has been told, at once; where it is not alone, what all of them know of."""
  return run.wish if run.hosts.count > 1 else stop.wish


def _refuse_another(identities: Sequence[Mapping[str, Any]]) -> None:
  first = identities[0]
  for index, other in enumerate(identities):
    for name in first.keys() | other.keys():
      if other.get(name) != first.get(name):
        raise UsageError(
          f"{name} is {other.get(name)} for process {index} and {first.get(name)} for process 0; give all the same"
        )


def _compiled(
  config: RecoverConfig, run: Run, segments: bool, fading: Fading | None
) -> tuple[Callable[..., Any], float]:
  """Returns the step's program and the seconds it took to compile."""
  state = State(run.trained, run.opt_state, run.frozen)
  with stage("Compiling the training step", 1, "programs") as bar:
    traced = traced_step(config, run.way, state, run.mesh, segments=segments, teacher=run.teacher, fading=fading)
    program = _program(config, traced.lower(), devices_of(run.mesh))
    bar.advance()
  run.journal.note("compile", seconds=bar.seconds)
  known = outlook(run, program, segments)
  for line in in_words(known):
    log.info("%s", line)
  run.journal.note("plan", plan=known)
  run.least_seconds = known["flops_per_step"] / known["peak_flops_per_second"]
  return program, bar.seconds


def _program(config: RecoverConfig, lowered: Any, devices: Sequence[jax.Device]) -> Any:
  """Returns the compiled step, out of a file where there is one of this very program."""
  found = None
  if config.program is not None:
    options = compiler_options(deterministic=config.deterministic)
    found = saved.load(Path(config.program), saved.program_digest(lowered, options, devices), lowered, devices)
  return lowered.compile() if found is None else found


def _train(
  run: Run,
  program: Callable[..., Any],
  batches: Batches,
  held_out: HeldOut | None,
  along: Along | None,
  stop: Stop,
) -> None:
  """Runs the steps that are left, or fewer when a signal asks to stop; the last one is settled, not saved.

  A process that meets an error tells the others with its next step, which nobody applies, and all of them raise it.
  """
  config, folder, left = run.config, run.curve.path.parent, run.config.steps - run.step
  track = config.track if jax.process_index() == 0 else ()
  settings = dataclasses.asdict(config)
  # Alone, a process may stop at once; several have no time to agree on that between two batches.
  stopped = lambda: run.hosts.count == 1 and stop.asked is not None  # noqa: E731
  with (
    Trackers(track, folder, step=run.step, told=run.told, config=settings) as trackers,
    Profile(config.profile_steps, folder / "profile", left) as profile,
    stage("Recovering", left) as bar,
    contextlib.closing(batches.from_step(run.step, own_rows(run.mesh, config.batch_size))) as records,
  ):
    run.listeners += [partial(_show, bar), trackers.log]
    run.journal.note("train")
    failed: JaxchopError | None = None
    try:
      while run.step < config.steps and not _heard(run, stop):
        with profile.step(run.step + 1, run.settle):
          failed = _stepped(run, program, records, batches.segments, stop, failed)
        failed = _looked_after(run, held_out, along, stopped) or failed
    finally:
      # The step that was running when the data or a save failed is told of too.
      run.settle()
      run.listeners.clear()
  _raise_together(failed, run.hosts)


def _stepped(
  run: Run,
  program: Callable[..., Any],
  records: Generator[Batch],
  segments: bool,
  stop: Stop,
  failed: JaxchopError | None,
) -> JaxchopError | None:
  """Sends off the next step; returns what this process has met so far, which it tells the others with that step.

  Alone, it raises what it meets.
  """
  run.hosts.doing(run.step + 1, "reading its rows")
  run.clock.ask()
  try:
    run.checkpoints.poll()
    batch = next_batch(records, run)
  except JaxchopError as error:
    if run.hosts.count == 1:
      raise
    failed, batch = failed or error, blank(run.config, run.mesh, segments)
  run.hosts.doing(run.step + 1, "running")
  run.dispatch(program, placed(batch, run), Wish.FAIL if failed is not None else stop.wish)
  return failed


def _looked_after(
  run: Run, held_out: HeldOut | None, along: Along | None, stopped: Callable[[], bool]
) -> JaxchopError | None:
  """Measures and saves where it is time to; returns why a checkpoint could not be written."""
  measuring = held_out is not None and run.step % run.config.evaluate_every == 0
  if not measuring and run.step % run.config.checkpoint_every:
    return None
  run.settle()
  if held_out is not None and measuring and run.wish != Wish.FAIL:
    run.measure(partial(held_out.loss, stopped))
  try:
    run.save()
  except Unsaved as error:
    return error
  if along is not None and measuring and run.wish == Wish.NONE:
    run.look(along, stopped)
  return None


def _raise_together(failed: JaxchopError | None, hosts: Channel) -> None:
  """Raises this process's error, or in the others the one they hear of."""
  told = hosts.gather("failed", failed and [isinstance(failed, Unsaved), str(failed)])
  if failed is not None:
    raise failed
  for index, said in enumerate(told):
    if said:
      raise (Unsaved if said[0] else JaxchopError)(f"process {index} ({hosts.names[index]}): {said[1]}")


def _show(bar: Bar, line: Mapping[str, Any]) -> None:
  loss = "not finite" if line["loss"] is None else f"{line['loss']:.3f}"
  waited = line["data_wait"] / (line["data_wait"] + line["seconds"])
  speed = f"{line['tokens_per_second']:.0f} tokens/s, MFU {100 * line['mfu']:.0f} %, data wait {100 * waited:.0f} %"
  bar.advance(1, f"loss {loss}, {speed}")
