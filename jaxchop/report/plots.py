"""The figures of a report: scores per layer, loss, perplexity and speed, drawn for a page of any width."""

import functools
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from jaxchop.report import wording
from jaxchop.report.figure import PALETTE, new_figure
from jaxchop.report.results import Measured, Run, Score, Step

# Inches of a figure on a phone.
NARROW = 3.7
# Points drawn of a loss curve; more cannot be seen.
_POINTS = 600
# Perplexities with the largest so many times the smallest are drawn on a log scale.
_SPREAD = 20.0
# Scores so many times what most layers have are cut.
_CUT = 8.0
_REMOVED: dict[str, Any] = {"facecolor": PALETTE["pruned-soft"], "edgecolor": PALETTE["pruned"], "hatch": "/////"}


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
  found = []
  scores = [score for score in run.scores if _finite(score.per_layer)]
  if scores:
    words = (
      f"Bar chart, score of each layer; the plan {run.plan.words}" if run.plan else "Bar chart, score of each layer"
    )
    drop = run.plan.drop if run.plan else ()
    lines = "Thin lines: the interval of each score." if any(score.interval for score in scores) else ""
    caption = " ".join(filter(None, (lines, *map(_cut_in_words, scores))))
    found.append(Chart("scores", words, functools.partial(score_figure, scores, drop), 7.4, caption))
  if any(math.isfinite(step.loss) for step in run.steps):
    words = f"Line chart, training loss over {len(run.steps)} steps"
    found.append(Chart("loss", words, functools.partial(loss_figure, run.steps), 7.4))
  if _finite(_perplexities(run.models).values()):
    words = "Bar chart, held-out perplexity of each model"
    draw = functools.partial(perplexity_figure, run.models)
    found.append(Chart("perplexity", words, draw, 4.4, _protocol(run.models)))
  if _finite([rate for model in run.models for rate in (model.decode, model.prefill)]):
    words = "Bar chart, decode and prefill speed of each model"
    protocols = dict.fromkeys(model.speed_protocol for model in run.models if model.speed_protocol)
    draw = functools.partial(speed_figure, run.models)
    found.append(Chart("speed", words, draw, 4.4, "; ".join(protocols)))
  return {chart.name: chart for chart in found}


def score_figure(scores: Sequence[Score], removed: Collection[int], width: float) -> Figure:
  """One bar a layer and one panel a criterion; removed layers are pale and hatched."""
  figure, panels = new_figure(width, 0.35 + 1.9 * len(scores), len(scores))
  for axes, score in zip(panels, scores, strict=True):
    _score_panel(axes, score, removed)
  panels[-1].set_xlabel("layer", loc="left")
  if removed:
    # Below the axis, where no title can be.
    panels[-1].legend(
      [Patch(color=PALETTE["original"]), Patch(**_REMOVED)],
      ["kept", "removed"],
      loc="upper right",
      bbox_to_anchor=(1, -0.2),
      borderaxespad=0,
      ncols=2,
      handlelength=1.2,
    )
  return figure


def _score_panel(axes: Axes, score: Score, removed: Collection[int]) -> None:
  limit, beyond = _beyond(score)
  values = [math.nan if value is None else min(value, limit) for value in score.per_layer]
  for layer, value in enumerate(values):
    look = _REMOVED if layer in removed else {"color": PALETTE["original"]}
    axes.bar(layer, value, 0.74, **look)
  if score.interval:
    axes.vlines(range(len(values)), *zip(*score.interval, strict=True), color=PALETTE["ink"], linewidth=1)
  if beyond:
    axes.set_ylim(0, limit)
    axes.plot(beyond, [limit] * len(beyond), "^", color=PALETTE["ink"], markersize=4, clip_on=False)
  axes.set_title(_plain(wording.criterion(score.name)))
  axes.grid(axis="y")
  axes.spines["left"].set_visible(False)
  axes.set_xlim(-0.7, len(values) - 0.3)
  axes.xaxis.set_major_locator(MaxNLocator(nbins=16, integer=True, steps=[1, 2, 5, 10]))


def _beyond(score: Score) -> tuple[float, list[int]]:
  """Where to cut a panel whose few largest bars would flatten the others, and the layers that are cut."""
  values = sorted(_finite(score.per_layer))
  usual = values[int(0.8 * (len(values) - 1))]
  limit = 2.5 * usual if values[-1] > _CUT * usual > 0 else values[-1]
  return limit, [layer for layer, value in enumerate(score.per_layer) if value is not None and value > limit]


def _cut_in_words(score: Score) -> str:
  cut = [f"layer {layer} ({wording.number(score.per_layer[layer] or 0)})" for layer in _beyond(score)[1]]
  return f"Cut at the top, {wording.criterion(score.name)}: {', '.join(cut)}." if cut else ""


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
  axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, steps=[1, 2, 5, 10]))
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


def _plain(text: str) -> str:
  """What the figures' font can draw; a name from a file may hold anything."""
  return "".join(letter if " " <= letter <= "~" else "?" for letter in text[:60])
