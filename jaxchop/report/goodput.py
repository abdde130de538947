"""Where the time of a recovery went, as its summary tells it: in one line, and part by part."""

from dataclasses import dataclass

from jaxchop import wording
from jaxchop.recover.goodput import PARTS
from jaxchop.report.fields import Fields


@dataclass(frozen=True, kw_only=True, slots=True)
class Goodput:
  """The wall time of a recovery over all processes that worked on it."""

  # Part, see PARTS, and its seconds, in that order; parts of no time are left out.
  parts: tuple[tuple[str, float], ...]
  # Processes that worked on it, one after the other.
  processes: int
  # Steps that were done again after a kill.
  steps_lost: int
  # Steps that changed nothing, and steps whose loss was far above those before them.
  skipped: int = 0
  spikes: int = 0

  @property
  def seconds(self) -> float:
    return sum(spent for _, spent in self.parts)

  @property
  def productive(self) -> float:
    """The share of the time in which the model was trained."""
    return dict(self.parts).get("productive", 0.0) / self.seconds


def read_goodput(recovery: Fields) -> Goodput | None:
  """Returns what a summary's `recovery` says of its time; None where no step was done."""
  file = recovery.child("goodput")
  found = dict(file.pairs("parts"))
  parts = tuple((name, found[name]) for name in PARTS if found.get(name, 0) > 0)
  if not parts:
    return None
  return Goodput(
    parts=parts,
    processes=file.integer("processes") or 1,
    steps_lost=file.integer("steps_lost") or 0,
    skipped=recovery.integer("skipped") or 0,
    spikes=recovery.integer("spikes") or 0,
  )


def sentences(goodput: Goodput) -> list[str]:
  """Returns what the table of parts does not show."""
  lost = goodput.steps_lost
  events = [
    f"{goodput.processes} processes worked on it, one after the other." if goodput.processes > 1 else "",
    f"{_steps(lost)} done again after a kill." if lost else "",
    f"{_steps(goodput.skipped)} skipped and changed nothing." if goodput.skipped else "",
    f"{goodput.spikes} losses were far above those before them." if goodput.spikes else "",
  ]
  return [text for text in events if text]


def in_one_line(goodput: Goodput) -> str:
  """Returns the whole, the productive share, and the other parts, largest first."""
  rest = sorted(((name, spent) for name, spent in goodput.parts if name != "productive"), key=lambda part: -part[1])
  words = ", ".join(f"{name.replace('_', ' ')} {wording.duration(spent)}" for name, spent in rest)
  share = wording.percent(goodput.productive)
  return " ".join([f"{share} of {wording.duration(goodput.seconds)} productive; {words}.", *sentences(goodput)])


def _steps(count: int) -> str:
  return f"{count} step was" if count == 1 else f"{count:,} steps were"
