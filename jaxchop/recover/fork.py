"""Forks: runs of their own that take over another run in its stable phase, and in which the rate only falls.

A warm-up–stable–decay run can be tried at any length for the price of its decays alone (arXiv 2405.18392, section 3).
"""

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxchop.errors import UsageError
from jaxchop.parallel.channel import Channel
from jaxchop.recover.checkpoint import Checkpoints, Restored
from jaxchop.recover.optimizer import decay_start
from jaxchop.training import RecoverConfig

# Settings that a fork may have for itself, beside those that say how a step is computed.
_OWN = {"steps", "fork"}
_OWN_OF_THE_OPTIMIZER = {"decay_share", "final_share"}


@dataclasses.dataclass(frozen=True)
class Origin:
  """The checkpoint that a fork begins with."""

  checkpoints: Checkpoints
  step: int

  def restore(self, model: Any, opt_state: Any) -> Restored:
    """Returns the state there, placed as the given abstract trees; raises UsageError when it is not whole."""
    found = self.checkpoints.restore_latest(model, opt_state, step=self.step)
    if found is None:
      raise UsageError(f"{self.checkpoints.folder}: the checkpoint of step {self.step} is damaged; fork from another")
    return found


def origin_of(config: RecoverConfig, folder: Path, meta: Mapping[str, Any], free: set[str], hosts: Channel) -> Origin:
  """Returns where the run in `folder`, a fork, begins or once began.

  `meta` says what is trained on what, `free` names the settings that may differ between the two runs. Raises UsageError
  when the run that `config.fork` names has no such checkpoint, it is not in the stable phase, or it is another run's.
  """
  if config.optimizer.schedule != "wsd":
    raise UsageError(
      f"recover.fork: only the schedule wsd has forks, not {config.optimizer.schedule}; set recover.optimizer.schedule"
    )
  named = re.fullmatch(r"(.+)@(\d+)", config.fork or "")
  path, wanted = (named[1], int(named[2])) if named else (config.fork or "", None)
  checkpoints = Checkpoints(Path(path) / "checkpoints", hosts=hosts)
  own = next((found["forked"] for _, found in Checkpoints(folder / "checkpoints").metas() if "forked" in found), None)
  if own is not None and wanted in (None, own):
    return Origin(checkpoints, own)
  metas = checkpoints.metas()
  there = [step for step, _ in metas]
  for step, found in metas:
    if wanted in (None, step):
      _refuse_another(path, config, meta, found, free)
      if (phase := _phase(step, found)) == "stable":
        return Origin(checkpoints, step)
      if wanted is not None:
        raise UsageError(f"recover.fork: step {step} of {path} is in its {phase}; fork from its stable phase")
  steps = ", ".join(map(str, sorted(there))) or "none"
  kind = "checkpoint in its stable phase" if wanted is None else f"checkpoint of step {wanted}"
  raise UsageError(f"recover.fork: {path} has no {kind}; its checkpoints: {steps}")


def decay_only(config: RecoverConfig, origin: Origin) -> RecoverConfig:
  """Returns the settings of the whole run that a fork is the end of: its `steps` of decay follow the origin's."""
  steps = origin.step + config.steps
  optimizer = dataclasses.replace(config.optimizer, decay_share=config.steps / steps)
  return dataclasses.replace(config, steps=steps, optimizer=optimizer)


def _phase(step: int, meta: Mapping[str, Any]) -> str:
  config, optimizer = meta["config"], meta["config"]["optimizer"]
  if step < optimizer["warmup_steps"]:
    return "warm-up"
  start = decay_start(config["steps"], optimizer["warmup_steps"], optimizer["decay_share"])
  return "decay" if step > start or config.get("fork") else "stable"


def _refuse_another(
  path: str, config: RecoverConfig, meta: Mapping[str, Any], found: Mapping[str, Any], free: set[str]
) -> None:
  ours, theirs = (_what(c, free) for c in (dataclasses.asdict(config), found["config"]))
  ours, theirs = ours | dict(meta), theirs | {name: found.get(name) for name in meta}
  for name in ours:
    mine = json.loads(json.dumps(ours[name]))
    if mine != theirs.get(name):
      raise UsageError(f"recover.fork: {path} was trained with {name} {theirs.get(name)}, not {mine}; set it back")


def _what(config: Mapping[str, Any], free: set[str]) -> dict[str, Any]:
  optimizer = {n: v for n, v in config["optimizer"].items() if n not in _OWN_OF_THE_OPTIMIZER}
  settings = {f"recover.{n}": v for n, v in config.items() if n not in free | _OWN | {"optimizer"}}
  return settings | {f"recover.optimizer.{n}": v for n, v in optimizer.items()}
