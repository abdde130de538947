"""The figures of a report, drawn for a page of any width: which there are, and those of loss, perplexity and speed."""

import functools
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxchop import wording
from jaxchop.report import heat_maps, score_bars
from jaxchop.report.along import courses_figure
from jaxchop.report.choices import choices
from jaxchop.report.figure import PALETTE, few_ticks, layer_ticks, new_figure
from jaxchop.report.results import Measured, Run, Step
from jaxchop.report.scored import Score

# Inches of a figure on a phone.
NARROW = 3.7
# Points drawn of a loss curve; more cannot be seen.
_POINTS = 600
# Perplexities with the largest so many times the smallest are drawn on a log scale.
_SPREAD = 20.0


@dataclass(frozen=True, slots=True)
class Chart:
  """A figure by name; `draw(width in inches)` draws it."""

  name: str
  # What there is to see, for those who cannot.
  words: str
  draw: Callable[[float], Figure]
  # Inches on a wide page.
  wide: float
  # What stands under it: how it was measured.
  caption: str = ""


def charts(run: Run) -> dict[str, Chart]:
  """The figures that the run has numbers for."""
  found = [*_score_charts(run), *_run_charts(run), *_agreement_charts(run), *_measured_charts(run)]
  return {chart.name: chart for chart in found}


def _score_charts(run: Run) -> Iterator[Chart]:
  """The criterion of the plan, or the only one, large; two and more all small."""
  scores = [score for score in run.scores if score_bars.can_be_drawn(score)]
  drop, does = (run.plan.drop, f"; the plan {run.plan.words}") if run.plan else ((), "")
  large = [score for score in scores if len(scores) == 1 or (run.plan and score.name == run.plan.criterion)]
  for score in large:
    draw = functools.partial(score_bars.score_figure, score, drop)
    yield Chart("scores", f"Bar chart, score of each layer{does}", draw, 7.4, _bars_in_words([score]))
  if len(scores) > 1:
    draw = functools.partial(score_bars.criteria_figure, scores, drop)
    words = f"Bar charts, score of each layer by {len(scores)} criteria{does}"
    yield Chart("criteria", words, draw, 7.4, _bars_in_words(scores))


def _bars_in_words(scores: Sequence[Score]) -> str:
  lines = "Thin lines: the interval of each score." if any(score.interval for score in scores) else ""
  return " ".join(filter(None, (lines, *map(score_bars.cut_in_words, scores))))


def _run_charts(run: Run) -> Iterator[Chart]:
  """Heat maps of what lies between two layers: scores of runs, and likeness of states."""
  scores = [score for score in run.scores if heat_maps.can_be_drawn(score.runs)]
  removed: tuple[int, ...] = ()
  if run.plan and run.plan.criterion in {score.name for score in scores} and heat_maps.run_of(run.plan.drop):
    removed = run.plan.drop
  if scores:
    words = f"Heat maps, scores of runs of layers by {len(scores)} criteria"
    yield Chart("runs", words, functools.partial(heat_maps.runs_figure, scores, removed), 7.4)
  paired = [score for score in run.scores if heat_maps.can_be_drawn(score.pairs)]
  for score in paired[:1]:
    words = f"Heat map, {wording.criterion(score.name)} of each two states"
    yield Chart("states", words, functools.partial(heat_maps.states_figure, score), 4.4)


def _agreement_charts(run: Run) -> Iterator[Chart]:
  found = choices(run)
  if found and len(found.each) > 1:
    words = f"Heat map, agreement of {len(found.each)} criteria on which {found.count} layers to drop"
    caption = "Percent of common layers among those that either of two criteria drops."
    yield Chart("agreement", words, functools.partial(heat_maps.agreement_figure, found), 7.4, caption)


def _measured_charts(run: Run) -> Iterator[Chart]:
  """What training and measuring the models gave."""
  if any(math.isfinite(step.loss) for step in run.steps):
    words = f"Line chart, training loss over {len(run.steps)} steps"
    yield Chart("loss", words, functools.partial(loss_figure, run.steps), 7.4)
  if run.courses:
    words = f"Line charts over the steps: {', '.join(course.name for course in run.courses)}"
    protocols = dict.fromkeys(f"{one.name}: {one.protocol}" for one in run.courses if one.protocol)
    draw = functools.partial(courses_figure, run.courses)
    yield Chart("along", words, draw, 7.4, "; ".join([*protocols, "± one standard error"] if protocols else []))
  if _finite(_perplexities(run.models).values()):
    words = "Bar chart, held-out perplexity of each model"
    draw = functools.partial(perplexity_figure, run.models)
    yield Chart("perplexity", words, draw, 4.4, _protocol(run.models))
  if _finite([rate for model in run.models for rate in (model.decode, model.prefill)]):
    words = "Bar chart, decode and prefill speed of each model"
    protocols = dict.fromkeys(model.speed_protocol for model in run.models if model.speed_protocol)
    draw = functools.partial(speed_figure, run.models)
    yield Chart("speed", words, draw, 4.4, "; ".join(protocols))


def loss_figure(steps: Sequence[Step], width: float) -> Figure:
  """The loss of each step, pale, and its running mean; very long runs as means over equal stretches."""
  figure, (axes,) = new_figure(width, 2.5)
  stretch = math.ceil(len(steps) / _POINTS)
  parts = [steps[start : start + stretch] for start in range(0, len(steps), stretch)]
  at = [part[-1].step for part in parts]
  losses = [_mean([step.loss for step in part]) for part in parts]
  reach = len(losses) // 24
  means = [_mean(losses[max(0, place - reach) : place + reach + 1]) for place in range(len(losses))]
  axes.plot(at, losses, color=PALETTE["recovered-soft"], linewidth=1.1, marker="." if len(at) == 1 else "")
  axes.plot(at, means, color=PALETTE["recovered"], linewidth=2)
  axes.set_title("loss in nats per token, pale, and its running mean")
  axes.set_xlabel("step")
  axes.grid(axis="y")
  axes.spines["left"].set_visible(False)
  axes.margins(x=0.01)
  layer_ticks(axes.xaxis, 8)
  few_ticks(axes.yaxis, 7)
  return figure


def perplexity_figure(models: Sequence[Measured], width: float) -> Figure:
  """One bar a model, from 0; far apart, on a log scale from 1, where a bar's length is nats per token."""
  figure, (axes,) = new_figure(width, 1.7)
  values = _perplexities(models)
  finite = _finite(values.values())
  _bars(axes, values, {name: wording.number(value) for name, value in values.items()})
  far = min(finite) >= 1 and max(finite) > _SPREAD * min(finite)
  axes.set_title("held-out perplexity, lower is better" + (" (log scale)" if far else ""))
  if far:
    axes.set_xscale("log")
    axes.set_xlim(1, max(finite) ** 1.3)
  return figure


def speed_figure(models: Sequence[Measured], width: float) -> Figure:
  """Decode and prefill in tokens a second, one panel each, with multiples of the original."""
  kinds = {
    "decode": {model.name: model.decode for model in models},
    "prefill": {model.name: model.prefill for model in models},
  }
  kinds = {kind: values for kind, values in kinds.items() if _finite(values.values())}
  figure, panels = new_figure(width, 0.1 + 1.6 * len(kinds), len(kinds))
  for axes, (kind, rates) in zip(panels, kinds.items(), strict=True):
    values = {name: math.nan if rate is None else rate for name, rate in rates.items()}
    base = values.get("original", math.nan)
    words = {}
    for name, value in values.items():
      times = "" if name == "original" else wording.ratio(value, base)
      words[name] = f"{wording.number(value)} · {times}".rstrip(" ·")
    _bars(axes, values, words)
    axes.set_title(f"{kind}, tokens per second")
  return figure


def _bars(axes: Axes, values: dict[str, float], words: dict[str, str]) -> None:
  """Lying bars in the models' colours, each with its number at its end."""
  known = {name: value for name, value in values.items() if not math.isnan(value)}
  limit = max(_finite(known.values())) or 1.0
  for place, (name, value) in enumerate(known.items()):
    length = value if math.isfinite(value) else limit
    axes.barh(place, length, 0.66, color=PALETTE[name])
    axes.annotate(words[name], (length, place), (5, 0), textcoords="offset points", va="center")
  axes.set_yticks(range(len(known)), list(known), color=PALETTE["ink"], fontsize=9)
  axes.invert_yaxis()
  axes.set_xlim(0, limit * 1.45)
  axes.xaxis.set_visible(False)
  axes.spines[["bottom", "left"]].set_visible(False)


def _perplexities(models: Sequence[Measured]) -> dict[str, float]:
  """The models' perplexities under the first protocol; two protocols do not stand in one figure."""
  return {model.name: dict(model.perplexity).get(_protocol(models), math.nan) for model in models}


def _protocol(models: Sequence[Measured]) -> str:
  return next((protocol for model in models for protocol, _ in model.perplexity), "")


def _finite(values: Collection[float | None]) -> list[float]:
  return [value for value in values if value is not None and math.isfinite(value)]


def _mean(values: Sequence[float]) -> float:
  return sum(values) / len(values)
