"""Goodput: into what the wall time of a run divides, over all processes that worked on it one after the other.

The time between two processes does not count. After a kill a process counts up to its last sign of life.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

# What each part is, in the order in which people read them.
PARTS = {
  "productive": "steps that the model keeps",
  "data_wait": "devices waited for a batch",
  "compile": "compiling the step",
  "restore": "reading a checkpoint",
  "save": "devices waited for a save",
  "evaluation": "measuring in between",
  "start": "other work before the first step",
  "lost": "steps done again after a kill, or skipped",
  "other": "the rest: host work between steps",
}


@dataclasses.dataclass
class _Session:
  """What one process did."""

  begin: float
  last: float
  # When its first step was about to be queued.
  first_step: float | None = None
  timed: float = 0.0


def goodput(events: Sequence[dict[str, Any]], curve: Sequence[dict[str, Any]]) -> dict[str, Any]:
  """Returns seconds in all, by part (see PARTS), the productive share, and how many processes and lost steps there are.

  `events` are those of the journal, `curve` the steps that the run kept. The parts sum up to the whole.
  """
  parts, sessions, lost, left = dict.fromkeys(PARTS, 0.0), list[_Session](), 0, set[float]()
  for event in events:
    name, when = event["event"], event["time"]
    if name == "begin":
      sessions.append(_Session(when, when))
    if not sessions:
      continue
    session = sessions[-1]
    if name == "lost":
      # The process that is about to cut them may be killed before it does, and the next one counts them again.
      if event["until"] not in left:
        left.add(event["until"])
        lost, parts["lost"] = lost + event["steps"], parts["lost"] + event["seconds"]
        session.last = max(session.last, event["until"])
      continue
    session.last = max(session.last, when)
    if name == "train":
      session.first_step = when
      parts["start"] += max(0.0, when - session.begin - session.timed)
    elif name in parts:
      parts[name] += event["seconds"]
      session.timed += event["seconds"]
  for line in curve:
    parts["lost" if line.get("skipped") else "productive"] += line["seconds"]
    parts["data_wait"] += line.get("data_wait", 0.0)
    _extend(sessions, line.get("time"))
  for session in sessions:
    if session.first_step is None:
      parts["start"] += max(0.0, session.last - session.begin - session.timed)
  wall = sum(session.last - session.begin for session in sessions)
  # A wall clock that was set back cannot make the whole smaller than its parts.
  parts["other"] = max(0.0, wall - sum(parts.values()))
  whole = sum(parts.values())
  return {
    "seconds": whole,
    "parts": parts,
    "productive_share": parts["productive"] / whole if whole else None,
    "processes": len(sessions),
    "steps_lost": lost,
  }


def _extend(sessions: Sequence[_Session], when: float | None) -> None:
  """The process that was at work then was alive then."""
  if when is None:
    return
  for session in reversed(sessions):
    if session.begin <= when:
      session.last = max(session.last, when)
      return
