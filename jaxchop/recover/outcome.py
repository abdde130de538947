"""What comes of a recovery: the model, and what it took."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from jaxchop.model.llama import Llama
from jaxchop.recover.goodput import goodput
from jaxchop.recover.journal import read_journal
from jaxchop.recover.run import Run


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recovered:
  """A recovered model, and what it took; restarts count together, but for the compilation."""

  model: Llama
  steps: int
  # Tokens predicted.
  tokens: int
  # Seconds in which steps ran.
  seconds: float
  compile_seconds: float
  tokens_per_second: float
  # Mean loss of the first and of the last step's batch, in nats a token; None without a step.
  first_loss: float | None
  last_loss: float | None
  # Steps that changed nothing, and steps whose loss was far above those before them.
  skipped: int = 0
  spikes: int = 0
  # See goodput.py and outlook.py; None without a step.
  goodput: Mapping[str, Any] | None = None
  plan: Mapping[str, Any] | None = None


def untrained(model: Llama) -> Recovered:
  """Returns the recovery of no step at all."""
  return Recovered(
    model=model,
    steps=0,
    tokens=0,
    seconds=0.0,
    compile_seconds=0.0,
    tokens_per_second=0.0,
    first_loss=None,
    last_loss=None,
  )


def outcome(run: Run, model: Llama, compile_seconds: float) -> Recovered:
  """Returns what a run has come to with its model, over all its restarts."""
  steps = run.curve.steps
  seconds = sum(line["seconds"] for line in steps)
  losses = [line["loss"] for line in steps if line["loss"] is not None]
  events = read_journal(run.journal.path)
  plans = [event["plan"] for event in events if event["event"] == "plan"]
  return Recovered(
    model=model,
    steps=run.step,
    tokens=run.tokens,
    seconds=seconds,
    compile_seconds=compile_seconds,
    tokens_per_second=len(steps) * run.config.batch_size * run.config.seq_len / seconds,
    first_loss=losses[0] if losses else None,
    last_loss=losses[-1] if losses else None,
    skipped=sum(line.get("skipped", False) for line in steps),
    spikes=sum(line.get("spike", False) for line in steps),
    goodput=goodput(events, steps),
    plan=plans[-1] if plans else None,
  )
