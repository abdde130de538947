"""Steps out of the ordinary: losses that are not finite, and losses far above those before them.

What is decided about a step follows from the losses of earlier steps alone and travels with every checkpoint, so that a
restart decides as the run without it would have.
"""

import logging
import math
import statistics
from collections import deque
from collections.abc import Mapping
from typing import Any

from jaxchop.training import RecoverConfig

log = logging.getLogger("jaxchop")
# A loss is far above the last WINDOW ones beyond their mean and so many standard deviations, once half of them are
# there. Source: the numbers of MaxText's and OLMo-core's skipping of spikes.
WINDOW, DEVIATIONS = 128, 6.0


class Watch:
  """What earlier steps say about the next ones."""

  def __init__(self, config: RecoverConfig, state: Mapping[str, Any] | None = None):
    """`state` is that of the watch which the run had when it was saved."""
    state = state or {"step": 0, "skipped": 0, "losses": []}
    self.config = config
    self._step: int = state["step"]
    # Steps skipped in a row, up to the last one, because they were not finite.
    self.skipped: int = state["skipped"]
    self._losses = deque[float | None](state["losses"], maxlen=WINDOW + 1)

  def state(self) -> dict[str, Any]:
    """Returns what `__init__` needs to go on, as plain JSON."""
    return {"step": self._step, "skipped": self.skipped, "losses": list(self._losses)}

  def limit(self, step: int) -> float:
    """Returns the loss above which `step` is a spike; infinite while too few steps are known.

    The last step before it does not count: when a step is queued, the one before is still running.
    """
    known = list(self._losses)[: -1 if self._step == step - 1 else None]
    losses = [loss for loss in known[-WINDOW:] if loss is not None]
    if len(losses) < WINDOW // 2:
      return math.inf
    return statistics.fmean(losses) + DEVIATIONS * statistics.stdev(losses)

  def allowed(self, step: int) -> float:
    """Returns the loss above which `step` is to change nothing."""
    return self.limit(step) if self.config.spike == "skip" else math.inf

  def note(self, step: int, loss: float, *, applied: bool, skipped: int) -> dict[str, bool]:
    """Takes the next step into account, warns where it is out of the ordinary, and returns the marks of its line."""
    limit, marks = self.limit(step), {}
    records = f"records {(step - 1) * self.config.batch_size}..{step * self.config.batch_size - 1} of the reading order"
    if skipped:
      log.warning(
        "step %d is not finite (%s) and changed nothing, %d in a row", step, f"loss {loss}, {records}", skipped
      )
    elif loss > limit:
      marks["spike"] = True
      outcome = "" if applied else "; it changed nothing"
      log.warning("step %d has loss %.3f, beyond %.3f (%s)%s", step, loss, limit, records, outcome)
    if not applied:
      marks["skipped"] = True
    self._step, self.skipped = step, skipped
    self._losses.append(loss if math.isfinite(loss) else None)
    return marks
