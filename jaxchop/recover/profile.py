"""A window of steps recorded by JAX's profiler, for TensorBoard's or XProf's trace viewer."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import jax

from jaxchop.errors import JaxchopError

# Steps of this process before the window: the first ones are slower.
_WARM = 3


class Profile:
  """Records `steps` steps into `folder`, after a few to warm up where `left` to come allow it; none where it is 0."""

  def __init__(self, steps: int, folder: Path, left: int):
    self.folder = folder
    self._start = min(_WARM, max(left - steps, 0)) if steps else None
    self._steps, self._seen, self._open = steps, 0, False

  def __enter__(self) -> "Profile":
    return self

  def __exit__(
    self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
  ) -> None:
    self._close()

  def step(self, number: int, settle: Callable[[], None]) -> contextlib.AbstractContextManager[object]:
    """Returns what to queue step `number` in; opens or closes the window first, when all before is settled."""
    if self._start is None:
      return contextlib.nullcontext()
    if self._seen == self._start:
      settle()
      self._begin()
    if self._seen == self._start + self._steps:
      settle()
      self._close()
    self._seen += 1
    return jax.profiler.StepTraceAnnotation("step", step_num=number) if self._open else contextlib.nullcontext()

  def _begin(self) -> None:
    try:
      jax.profiler.start_trace(self.folder)
    except (OSError, RuntimeError) as error:
      raise JaxchopError(
        f"{self.folder}: no profile can be recorded: {error}; set recover.profile_steps to 0"
      ) from error
    self._open = True

  def _close(self) -> None:
    if self._open:
      self._open = False
      jax.profiler.stop_trace()
