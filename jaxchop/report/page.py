"""The report of a run: one HTML page that needs nothing else, and its figures as PNG."""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from jaxchop import wording
from jaxchop.files import write_bytes, write_text
from jaxchop.layers import spans
from jaxchop.recover.goodput import PARTS
from jaxchop.report import goodput, story
from jaxchop.report.choices import Choices, choices
from jaxchop.report.comparison import comparison, marked, notes
from jaxchop.report.figure import style, to_png, to_svg
from jaxchop.report.plots import NARROW, Chart, charts
from jaxchop.report.results import Measured, Run, read_run


def write_report(run: Path) -> Path:
  """Writes report.html and figures/*.png into the run folder and returns the page's path.

  The page is the same bytes for the same results. Raises UsageError where the folder holds no results.
  """
  results = read_run(run)
  with style():
    found = charts(results)
    pictures = {name: to_png(chart.draw(chart.wide)) for name, chart in found.items()}
    page = render(results, found)
  for name, picture in pictures.items():
    write_bytes(run / "figures" / f"{name}.png", picture)
  write_text(run / "report.html", page)
  return run / "report.html"


def render(run: Run, found: Mapping[str, Chart]) -> str:
  """The page as HTML; every text of the run is escaped."""
  rows = comparison(run.models)
  footnotes = notes(rows)
  return _template().render(
    run=run,
    name=story.name(run),
    source=story.source(run),
    lede=story.lede(run),
    tiles=story.tiles(run),
    rows=[(marked(row, footnotes), row.cells) for row in rows],
    notes=[(wording.mark(index), note) for index, note in enumerate(footnotes)],
    cells=_cells(run),
    definitions=_definitions(run),
    scored=story.scored(run),
    choices=_choices(run),
    figures={name: (chart, _drawings(chart)) for name, chart in found.items()},
    rate=_median([step.tokens_per_second for step in run.steps]),
    mfu=_median([step.mfu for step in run.steps]),
    went=_went(run),
    samples=_samples(run.models),
    stages=_stages(run),
    total=wording.duration(sum(spent for _, spent in run.seconds)),
    not_run=story.not_run(run),
    honesty=story.honesty(run),
    words=wording,
    spans=spans,
  )


@functools.cache
def _template() -> jinja2.Template:
  environment = jinja2.Environment(
    loader=jinja2.PackageLoader("jaxchop", "report"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    finalize=_printable,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  return environment.get_template("page.html.j2")


def _printable(value: Any) -> Any:
  return wording.printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _drawings(chart: Chart) -> dict[str, Markup]:
  """The figure for wide and for narrow pages; the style sheet shows one of the two."""
  widths = {"wide": chart.wide, "narrow": NARROW}
  return {kind: Markup(to_svg(chart.draw(width), f"{chart.name}-{kind}")) for kind, width in widths.items()}


def _cells(run: Run) -> list[tuple[int, bool]]:
  return [(layer, layer in run.plan.drop) for layer in range(run.plan.layers)] if run.plan else []


def _definitions(run: Run) -> tuple[dict[str, str], dict[str, str]]:
  """What the rule that chose the layers is, or the only criterion scored; and what the other criteria are."""
  rule = {run.plan.criterion: run.plan.definition} if run.plan and run.plan.criterion else {}
  others = {score.name: score.definition for score in run.scores if score.name not in rule}
  if not rule and len(others) == 1:
    rule, others = others, {}
  mark = " (the rule)" if run.plan else ""
  return {wording.criterion(name) + mark: text for name, text in rule.items()}, {
    wording.criterion(name): text for name, text in others.items()
  }


def _choices(run: Run) -> Choices | None:
  """What the criteria would drop; one alone says nothing that the plan does not, unless how sure it is."""
  found = choices(run)
  return found if found and (len(found.each) > 1 or found.each[0].same_set is not None) else None


def _samples(models: Sequence[Measured]) -> list[tuple[str, list[tuple[str, str]]]]:
  """Prompt by prompt, how each model goes on."""
  prompts = dict.fromkeys(sample.prompt for model in models for sample in model.samples)
  return [
    (
      prompt,
      [(model.name, one.continuation.strip()) for model in models for one in model.samples if one.prompt == prompt],
    )
    for prompt in prompts
  ]


def _went(run: Run) -> tuple[list[tuple[str, str, float]], list[str]] | None:
  """Parts of the recovery's time in words, with their percent of the whole, and what else there is to say of it."""
  if run.goodput is None:
    return None
  whole = run.goodput.seconds
  parts = [(PARTS[name], wording.duration(spent), 100 * spent / whole) for name, spent in run.goodput.parts]
  return parts, goodput.sentences(run.goodput)


def _stages(run: Run) -> list[tuple[str, str, float]]:
  """Stage, its time in words and its percent of the longest."""
  longest = max((spent for _, spent in run.seconds), default=0.0) or 1.0
  return [(name, wording.duration(spent), 100 * max(0.0, spent) / longest) for name, spent in run.seconds]


def _median(values: Sequence[float | None]) -> float | None:
  known = sorted(value for value in values if value is not None)
  return known[len(known) // 2] if known else None
