"""What a recovery was measured by between its steps: held-out loss and one figure of every suite, over the steps."""

import math
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxchop.recover.journal import read_journal
from jaxchop.report.fields import Fields
from jaxchop.report.figure import PALETTE, few_ticks, layer_ticks, new_figure, plain


@dataclass(frozen=True, slots=True)
class Course:
  """One figure over the steps."""

  name: str
  # How it was measured, in words.
  protocol: str
  # See evaluate/figures.py: of a share more is better, of a perplexity, bits and nats less, else nobody knows.
  unit: str
  # (step, value, standard error).
  points: tuple[tuple[int, float, float | None], ...]

  @property
  def share(self) -> bool:
    return self.unit == "share"

  @property
  def best(self) -> tuple[int, float, float | None] | None:
    """The first of the best points; None where nobody knows whether more is better."""
    if self.unit == "number":
      return None
    return (max if self.share else min)(self.points, key=lambda point: point[1])


def read_courses(journal: Path) -> tuple[Course, ...]:
  """Returns the courses that a run's journal tells of, held-out loss first; of a step measured again the later value.

  Raises JaxchopError, with the field, where a line is not what a run writes.
  """
  points: dict[tuple[str, str, str], dict[int, tuple[float, float | None]]] = {}
  for event in read_journal(journal):
    line = Fields(str(journal), event)
    step = line.integer("step")
    if step is None or event["event"] not in ("held_out", "measured"):
      continue
    if event["event"] == "held_out":
      found = {("held-out loss, nats per token", "", "nats"): (line.number("loss"), None)}
    else:
      found = {
        (name, one.text("protocol"), one.text("unit")): (one.number("value"), one.number("error"))
        for name, one in line.children("figures")
        if one.flag("main")
      }
    for course, (value, error) in found.items():
      if value is not None and math.isfinite(value):
        points.setdefault(course, {})[step] = value, error
  return tuple(
    Course(*course, tuple((step, *known[step]) for step in sorted(known))) for course, known in points.items()
  )


def courses_figure(courses: tuple[Course, ...], width: float) -> Figure:
  """One panel a figure, with its standard errors; the best point is filled and says its step."""
  figure, panels = new_figure(width, 0.3 + 1.6 * len(courses), len(courses))
  for axes, course in zip(panels, courses, strict=True):
    _draw(axes, course)
  panels[-1].set_xlabel("step")
  return figure


def _draw(axes: Axes, course: Course) -> None:
  scale = 100 if course.share else 1
  steps = [step for step, *_ in course.points]
  values = [scale * value for _, value, _ in course.points]
  errors = [scale * (error or 0.0) for *_, error in course.points]
  axes.errorbar(
    steps,
    values,
    errors,
    color=PALETTE["recovered"],
    ecolor=PALETTE["recovered-soft"],
    marker="o",
    markerfacecolor="none",
  )
  if best := course.best:
    at = best[0], scale * best[1]
    axes.plot(*([each] for each in at), marker="o", linestyle="", color=PALETTE["recovered"])
    axes.annotate(f"best: step {at[0]}", at, (0, 6), textcoords="offset points", ha="center", fontsize=8)
  axes.set_title(plain(course.name) + (", percent" if course.share else ""))
  axes.grid(axis="y")
  axes.spines["left"].set_visible(False)
  axes.margins(x=0.05, y=0.3)
  layer_ticks(axes.xaxis, 8)
  few_ticks(axes.yaxis, 5)
