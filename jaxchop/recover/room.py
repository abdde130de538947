"""Whether the disk holds the checkpoints to come, asked before the first step: a save may fail hours behind it."""

import contextlib
import logging

import jax

from jaxchop.files import free_bytes
from jaxchop.recover.checkpoint import Checkpoints, Keep, Unsaved
from jaxchop.recover.run import Run
from jaxchop.training import RecoverConfig
from jaxchop.wording import size

log = logging.getLogger("jaxchop")


def require_room(run: Run) -> None:
  """Warns where not all checkpoints that will lie there at once find room; raises Unsaved where not one does."""
  folder, config = run.checkpoints.folder, run.config
  each = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves((run.trained, run.opt_state)))
  free = run.hosts.first("free bytes", lambda: _free(run.checkpoints))
  if free < each:
    raise Unsaved(
      f"{folder}: a checkpoint of this run takes {size(each)}, and {size(free)} are free there; "
      "make room or choose another folder"
    )
  more = at_once(config, run.step, len(run.checkpoints.steps()))
  if free < more * each and run.hosts.index == 0:
    log.warning(
      "%s: up to %d more checkpoints of %s will lie there at once, and %s are free: "
      "make room meanwhile, or let fewer stay (recover.keep_checkpoints)",
      *(folder, more, size(each), size(free)),
    )


def at_once(config: RecoverConfig, step: int, there: int) -> int:
  """Returns how many checkpoints at most come to lie on the disk beside the `there` many that do after `step`."""
  every = {config.checkpoint_every, config.evaluate_every} - {0}
  saves = {save for part in every for save in range(part, config.steps + 1, part)} | {config.steps}
  keep = Keep.by(config)
  stay = keep.last + keep.best + sum(save % keep.every == 0 for save in saves if keep.every)
  # One is written before the oldest of the others is deleted.
  return min(sum(save > step for save in saves), max(stay + 1 - there, 1))


def _free(checkpoints: Checkpoints) -> int:
  # What cannot be deleted is told of by the first save, which tries again.
  with contextlib.suppress(OSError):
    checkpoints.clear()
  return free_bytes(checkpoints.folder)
