"""Heat maps: scores of runs of layers, likeness of all states, agreement of the criteria.

A cell's colour is one of the palette's steps, so that the page's light and dark styles choose it.
"""

import itertools
import math
from collections.abc import Iterable, Sequence

from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Patch, PathPatch, Rectangle
from matplotlib.path import Path
from matplotlib.ticker import LogLocator, NullLocator

from jaxchop import wording
from jaxchop.layers import spans
from jaxchop.report.choices import Choices
from jaxchop.report.figure import HEAT_STEPS, PALETTE, few_ticks, layer_ticks, new_figure, plain
from jaxchop.report.scored import Score

# Scores with the largest so many times the smallest are coloured on a log scale, which ends at so many times the
# smallest: a model that far gone is no better than one further gone.
_SPREAD, _FAR = 20.0, 1000.0
# From this step on, text in a cell is light on white paper and dark on dark paper.
_TURN = 9
# Agreement is drawn for at least so many columns, lest two criteria fill the page.
_COLUMNS = 8

# Column, row and value of a cell.
Cell = tuple[int, int, float]


def runs_figure(scores: Sequence[Score], removed: Sequence[int], width: float) -> Figure:
  """One panel a criterion: across the first layer of a run, upwards how many layers it has; `removed` is marked."""
  columns = 2 if width > 5 and len(scores) > 1 else 1
  rows = math.ceil(len(scores) / columns)
  figure, panels = new_figure(width, 0.3 + 2.7 * rows, rows, columns)
  for axes in panels[len(scores) :]:
    axes.remove()
  for axes, score in zip(panels, scores, strict=False):
    cells = [(start, size, value) for size, row in enumerate(score.runs, 1) for start, value in enumerate(row)]
    norm = _heat(axes, cells, name=score.name)
    log = " (log scale)" if isinstance(norm, LogNorm) else ""
    axes.set_title(plain(wording.criterion(score.name)) + log)
    axes.set_xlabel("first layer", loc="left")
    axes.set_ylabel("layers in the run")
    if removed:
      _mark(axes, removed[0], len(removed))
  if removed:
    look = Patch(facecolor="none", edgecolor=PALETTE["pruned"], linewidth=1.6)
    where = f"removed: {'layer' if len(removed) == 1 else 'layers'} {spans(removed)}"
    figure.legend([look], [where], loc="outside lower right", handlelength=1.2, borderaxespad=0.2)
  return figure


def states_figure(score: Score, width: float) -> Figure:
  """The value of each two states: 0 enters the first layer, the last leaves the last one."""
  figure, (axes,) = new_figure(width, 0.3 + 0.8 * width)
  cells = [(x, y, value) for y, row in enumerate(score.pairs) for x, value in enumerate(row)]
  _heat(axes, cells, name=f"{score.name}-pairs")
  axes.set_title(f"{_title(score)} of each two states")
  axes.set_xlabel("state, by the layer it enters", loc="left")
  axes.set_ylabel("state")
  return figure


def agreement_figure(choices: Choices, width: float) -> Figure:
  """Percent of common layers among those that either of two criteria drops."""
  names = [plain(wording.criterion(choice.name)) for choice in choices.each]
  small = width < 5 and len(names) > _COLUMNS
  figure, (axes,) = new_figure(width, 1.5 + 0.23 * len(names))
  cells = [(x, y, share) for y, row in enumerate(choices.shared) for x, share in enumerate(row)]
  norm = Normalize(0, 1)
  _squares(axes, cells, norm, name="agreement")
  for x, y, share in cells:
    role, words = "ink" if _step(norm, share) < _TURN else "on-heat", f"{100 * share:.0f}"
    size = 7.5 if not small else 5.5 if len(words) < 3 else 4.6
    axes.text(x, y, words, color=PALETTE[role], fontsize=size, ha="center", va="center_baseline")
  axes.set_xticks(range(len(names)), names, rotation=90, fontsize=6.5 if small else 8)
  axes.set_yticks(range(len(names)), names, fontsize=6.5 if small else 8)
  axes.set_xlim(-0.5, max(len(names), _COLUMNS) - 0.5)
  axes.set_ylim(len(names) - 0.5, -0.5)
  _bare(axes)
  return figure


def run_of(layers: Sequence[int]) -> bool:
  """Whether the layers follow each other without a gap."""
  return bool(layers) and list(layers) == list(range(layers[0], layers[0] + len(layers)))


def can_be_drawn(rows: Iterable[Sequence[float]]) -> bool:
  """Whether any of the values is a finite number."""
  return any(math.isfinite(value) for row in rows for value in row)


def _heat(axes: Axes, cells: Sequence[Cell], *, name: str) -> Normalize:
  """Draws coloured cells and their colour bar; the x and y of cells are what the axes say."""
  norm = _norm([value for *_, value in cells])
  _squares(axes, cells, norm, name=name)
  axes.set_xlim(min(x for x, *_ in cells) - 0.5, max(x for x, *_ in cells) + 0.5)
  axes.set_ylim(min(y for _, y, _ in cells) - 0.5, max(y for _, y, _ in cells) + 0.5)
  layer_ticks(axes.xaxis, 7)
  layer_ticks(axes.yaxis, 7)
  _bare(axes)
  _colour_bar(axes, norm, beyond=any(value > (norm.vmax or 0) for *_, value in cells))
  return norm


def _norm(values: Sequence[float]) -> Normalize:
  known = [value for value in values if math.isfinite(value)]
  low, high = min(known), max(known)
  # A colour bar takes what is smaller for zero.
  if low > 1e-100 and high > _SPREAD * low:
    return LogNorm(low, min(high, _FAR * low), clip=True)
  return Normalize(low, high if high > low else low + (abs(low) or 1.0), clip=True)


def _step(norm: Normalize, value: float) -> int:
  return min(int(HEAT_STEPS * float(norm(value))), HEAT_STEPS - 1)


def _squares(axes: Axes, cells: Sequence[Cell], norm: Normalize, *, name: str) -> None:
  """Squares around the cells' places; one shape a colour and equal neighbours together, which keeps the page small."""
  corners: dict[int, list[tuple[float, float]]] = {}
  coloured = [(y, _step(norm, value), x) for x, y, value in cells if not math.isnan(value)]
  for (y, step), group in itertools.groupby(coloured, key=lambda cell: cell[:2]):
    places = [x for *_, x in group]
    left, right, low, high = places[0] - 0.5, places[-1] + 0.5, y - 0.5, y + 0.5
    corners.setdefault(step, []).extend([(left, low), (right, low), (right, high), (left, high), (left, low)])
  codes = [Path.MOVETO, *[Path.LINETO] * 3, Path.CLOSEPOLY]
  for step, points in sorted(corners.items()):
    shape = Path(points, codes * (len(points) // len(codes)))
    # The page draws what is called cells without seams.
    axes.add_patch(PathPatch(shape, facecolor=PALETTE[f"heat-{step}"], linewidth=0, gid=f"{_id(name)}-cells-{step}"))


def _colour_bar(axes: Axes, norm: Normalize, *, beyond: bool) -> None:
  colours = ListedColormap([PALETTE[f"heat-{step}"] for step in range(HEAT_STEPS)])
  bar = axes.figure.colorbar(
    ScalarMappable(norm, colours), ax=axes, extend="max" if beyond else "neither", aspect=30, pad=0.02
  )
  bar.outline.set_visible(False)
  few_ticks(bar.ax.yaxis, 6)
  if isinstance(norm, LogNorm):
    bar.ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=12))
  bar.ax.yaxis.set_minor_locator(NullLocator())


def _mark(axes: Axes, start: int, size: int) -> None:
  """A frame around one cell, and thin lines to its numbers on the axes."""
  look = {"color": PALETTE["pruned"], "linewidth": 0.8, "linestyle": (0, (3, 2))}
  axes.plot([start, start], [0.5, size - 0.5], **look)
  axes.plot([-0.5, start - 0.5], [size, size], **look)
  axes.add_patch(
    Rectangle((start - 0.5, size - 0.5), 1, 1, facecolor="none", edgecolor=PALETTE["pruned"], linewidth=1.6, zorder=3)
  )


def _bare(axes: Axes) -> None:
  axes.spines[["bottom", "left"]].set_visible(False)
  axes.tick_params(length=0)


def _title(score: Score) -> str:
  return "CKA" if score.name == "cka" else plain(wording.criterion(score.name))


def _id(name: str) -> str:
  """The name as part of an id in a page."""
  return "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in name[:40])
