"""TensorBoard, W&B and trackio: the curve of a run, shown elsewhere while it grows. None of them can stop a run.

A resumed run goes on with the same series. Steps that it does again are not sent twice: they have the numbers that they
had. TensorBoard, whose files a kill may cut short, is told instead to forget them.
"""

import contextlib
import functools
import importlib
import logging
import os
import sys
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from jaxchop.errors import UsageError
from jaxchop.files import read_json, write_json
from jaxchop.training import Tracker

log = logging.getLogger("jaxchop")
# Where a number of the curve stands in a tracker.
TAGS = {
  "loss": "loss/train",
  "grad_norm": "opt/grad_norm",
  "learning_rate": "opt/lr",
  "tokens": "data/tokens",
  "tokens_per_second": "perf/tokens_per_sec",
  "seconds": "perf/step_time",
  "mfu": "perf/mfu",
  "data_wait": "perf/data_wait",
  "save_seconds": "perf/save_time",
}
_MODULES = {"tensorboard": "tensorboardX", "wandb": "wandb", "trackio": "trackio"}
_PROJECT = "jaxchop"


class _Series(Protocol):
  """One tracker at work."""

  def log(self, step: int, values: Mapping[str, float], when: float) -> None: ...

  def close(self) -> None: ...


class _TensorBoard:
  def __init__(self, module: Any, run: "Trackers"):
    forget = {"purge_step": run.step + 1} if run.step or run.told else {}
    # Its files are named by the second, and one of the same name is overwritten.
    own = f".{os.getpid()}.{run.step}"
    self._writer = module.SummaryWriter(str(run.folder / "tensorboard"), filename_suffix=own, **forget)

  def log(self, step: int, values: Mapping[str, float], when: float) -> None:
    for tag, value in values.items():
      self._writer.add_scalar(tag, value, step, walltime=when)

  def close(self) -> None:
    self._writer.close()


class _Wandb:
  def __init__(self, module: Any, run: "Trackers"):
    project = os.environ.get("WANDB_PROJECT", _PROJECT)
    about = {"project": project, "name": run.name, "id": run.id, "resume": "allow", "config": dict(run.config)}
    self._run, self._told = module.init(dir=str(run.folder), **about), run.told

  def log(self, step: int, values: Mapping[str, float], when: float) -> None:
    if step > self._told:
      self._run.log(dict(values), step=step)

  def close(self) -> None:
    self._run.finish()


class _Trackio:
  def __init__(self, module: Any, run: "Trackers"):
    about = {"project": _PROJECT, "name": f"{run.name}-{run.id}", "resume": "allow", "config": dict(run.config)}
    self._module, self._run, self._told = module, module.init(embed=False, **about), run.told

  def log(self, step: int, values: Mapping[str, float], when: float) -> None:
    if step > self._told:
      self._run.log(dict(values), step=step)

  def close(self) -> None:
    # The run's own `finish` would be called once more at the end of the process.
    self._module.finish()


_SERIES: dict[str, Callable[[Any, "Trackers"], _Series]] = {
  "tensorboard": _TensorBoard,
  "wandb": _Wandb,
  "trackio": _Trackio,
}


def require(names: Sequence[Tracker]) -> None:
  """Raises UsageError, with the command that installs it, where a tracker's package is missing."""
  for name in names:
    try:
      importlib.import_module(_MODULES[name])
    except ImportError as error:
      raise UsageError(
        f"recover.track: {name} needs the package {_MODULES[name]} ({error}); pip install 'jaxchop[track]'"
      ) from error


class Trackers:
  """The trackers of a run that goes on after `step`; `told` is the last step that any process has told of."""

  def __init__(self, names: Sequence[Tracker], folder: Path, *, step: int, told: int, config: Mapping[str, Any]):
    self.folder, self.step, self.told, self.config = folder, step, told, config
    self.name = folder.resolve().name
    self._series: dict[str, _Series] = {}
    for name in names:
      module = importlib.import_module(_MODULES[name])
      self._try(name, lambda name=name, module=module: self._series.update({name: _SERIES[name](module, self)}))

  def __enter__(self) -> "Trackers":
    return self

  def __exit__(
    self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
  ) -> None:
    for name, series in list(self._series.items()):
      self._try(name, series.close)

  def log(self, line: Mapping[str, Any]) -> None:
    """Sends one line of the curve to all trackers that still work."""
    values = {tag: line[key] for key, tag in TAGS.items() if line.get(key) is not None}
    for name, series in list(self._series.items()):
      self._try(name, lambda series=series: series.log(line["step"], values, line["time"]))

  def _try(self, name: str, action: Callable[[], object]) -> None:
    try:
      # Standard output is for the command's result alone.
      with contextlib.redirect_stdout(sys.stderr):
        action()
    except Exception as error:  # Whatever a tracker does wrong is not the run's affair.
      self._series.pop(name, None)
      words = " ".join(str(error).split())[:200] or type(error).__name__
      log.warning("recover.track: %s failed (%s); the run goes on without it", name, words)

  @functools.cached_property
  def id(self) -> str:
    """Returns what names this run elsewhere, the same after every restart."""
    path = self.folder / "track.json"
    if not path.exists():
      write_json(path, {"id": uuid.uuid4().hex[:12]})
    return read_json(path)["id"]
