"""Bars of the layers' scores: one criterion large, or all of them small, removed layers marked."""

import math
from collections.abc import Collection, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from jaxchop import wording
from jaxchop.report.figure import PALETTE, few_ticks, layer_ticks, new_figure, plain
from jaxchop.report.scored import Score

# Scores so many times what most layers have are cut.
_CUT = 8.0
_REMOVED: dict[str, Any] = {"facecolor": PALETTE["pruned-soft"], "edgecolor": PALETTE["pruned"], "hatch": "/////"}


def score_figure(score: Score, removed: Collection[int], width: float) -> Figure:
  """One bar a layer; removed layers are pale and hatched."""
  figure, (axes,) = new_figure(width, 2.25)
  _panel(axes, score, removed)
  few_ticks(axes.yaxis, 6)
  layer_ticks(axes.xaxis, 16)
  axes.set_xlabel("layer", loc="left")
  if removed:
    _legend(figure)
  return figure


def criteria_figure(scores: Sequence[Score], removed: Collection[int], width: float) -> Figure:
  """One small panel a criterion, a bar a layer."""
  columns = 3 if width > 5 else 2
  rows = math.ceil(len(scores) / columns)
  figure, panels = new_figure(width, 0.35 + 1.3 * rows, rows, columns)
  for axes in panels[len(scores) :]:
    axes.remove()
  for place, (axes, score) in enumerate(zip(panels, scores, strict=False)):
    _panel(axes, score, removed, small=True)
    few_ticks(axes.yaxis, 3)
    layer_ticks(axes.xaxis, 4)
    if place + columns >= len(scores):
      axes.set_xlabel("layer", loc="left")
  if removed:
    _legend(figure)
  return figure


def _panel(axes: Axes, score: Score, removed: Collection[int], *, small: bool = False) -> None:
  limit, beyond = _beyond(score)
  values = [math.nan if value is None else min(value, limit) for value in score.per_layer]
  for layer, value in enumerate(values):
    look = _REMOVED if layer in removed else {"color": PALETTE["original"]}
    axes.bar(layer, value, 0.74, **look, linewidth=0.6 if small else 1)
  if score.interval:
    axes.vlines(
      range(len(values)), *zip(*score.interval, strict=True), color=PALETTE["ink"], linewidth=0.7 if small else 1
    )
  if beyond:
    axes.set_ylim(min(0.0, *_finite(values)), limit)
    axes.plot(beyond, [limit] * len(beyond), "^", color=PALETTE["ink"], markersize=2.5 if small else 4, clip_on=False)
  axes.set_title(plain(wording.criterion(score.name)), fontsize=8 if small else 9, pad=5 if small else 9)
  axes.grid(axis="y")
  axes.spines["left"].set_visible(False)
  axes.set_xlim(-0.7, len(values) - 0.3)


def _legend(figure: Figure) -> None:
  """Below all panels, where no title can be."""
  looks = [Patch(color=PALETTE["original"]), Patch(**_REMOVED)]
  figure.legend(looks, ["kept", "removed"], loc="outside lower right", ncols=2, handlelength=1.2, borderaxespad=0.2)


def can_be_drawn(score: Score) -> bool:
  """Whether any layer's score is a finite number."""
  return bool(_finite(score.per_layer))


def cut_in_words(score: Score) -> str:
  """Which bars are cut, with their scores; empty where none is."""
  cut = [f"layer {layer} ({_number(score.per_layer[layer] or 0.0)})" for layer in _beyond(score)[1]]
  return f"Cut at the top, {wording.criterion(score.name)}: {', '.join(cut)}." if cut else ""


def _number(value: float) -> str:
  return wording.number(value) if abs(value) >= 0.1 else f"{value:.2g}"


def _beyond(score: Score) -> tuple[float, list[int]]:
  """Where to cut a panel whose few largest bars would flatten the others, and the layers that are cut."""
  values = _finite(score.per_layer)
  usual = sorted(map(abs, values))[int(0.8 * (len(values) - 1))]
  limit = 2.5 * usual if max(values) > _CUT * usual > 0 else max(values)
  return limit, [layer for layer, value in enumerate(score.per_layer) if value is not None and value > limit]


def _finite(values: Collection[float | None]) -> list[float]:
  return [value for value in values if value is not None and math.isfinite(value)]
