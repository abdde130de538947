"""An empty figure in the report's style, and a figure as PNG or as SVG that takes its colours from the page."""

import io
import re
from contextlib import AbstractContextManager

import matplotlib
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

# Steps of a heat map from low to high, evenly apart to the eye.
# fmt: off
_HEAT = (
  "#f1f4e4", "#d9e9db", "#c1ded2", "#a9d3ca", "#90c8c1", "#76bdb8", "#66adb4", "#559eaf",
  "#458faa", "#357fa5", "#23709f", "#21608d", "#1e507c", "#1b416b", "#18325a", "#14244a",
)
# fmt: on
# Role and colour on white. Orange and blue differ for every kind of colour blindness, and in lightness too.
PALETTE = {
  "ink": "#1d2530",
  "muted": "#5b6675",
  "grid": "#dfe3e9",
  "original": "#8a94a3",
  "pruned": "#d1630b",
  "pruned-soft": "#fbe3cf",
  "recovered": "#0b6bb0",
  "recovered-soft": "#a9cbe6",
  # Text on the upper steps of a heat map.
  "on-heat": "#fdfdfe",
  **{f"heat-{step}": colour for step, colour in enumerate(_HEAT)},
}
HEAT_STEPS = len(_HEAT)


def style() -> AbstractContextManager[None]:
  """The settings that drawing and saving need; put back on leaving."""
  return matplotlib.rc_context(
    {
      "font.family": ["DejaVu Sans"],
      "font.size": 9,
      # A dollar sign in a name is a dollar sign.
      "text.parse_math": False,
      "text.color": PALETTE["ink"],
      "axes.edgecolor": PALETTE["muted"],
      "axes.labelcolor": PALETTE["muted"],
      "axes.linewidth": 0.8,
      "axes.spines.top": False,
      "axes.spines.right": False,
      "axes.axisbelow": True,
      "axes.titlesize": 9,
      "axes.titlelocation": "left",
      "axes.titlepad": 9,
      "xtick.color": PALETTE["muted"],
      "ytick.color": PALETTE["muted"],
      "xtick.labelsize": 8,
      "ytick.labelsize": 8,
      "ytick.major.size": 0,
      "grid.color": PALETTE["grid"],
      "grid.linewidth": 0.8,
      "hatch.linewidth": 0.9,
      "hatch.color": PALETTE["pruned"],
      "legend.frameon": False,
      "legend.fontsize": 8,
      "svg.fonttype": "none",
      "svg.hashsalt": "jaxchop",
    }
  )


def new_figure(width: float, height: float, rows: int = 1, columns: int = 1) -> tuple[Figure, list[Axes]]:
  """A figure of so many inches and its axes, row by row."""
  figure = Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(h_pad=0.08))
  FigureCanvasAgg(figure)
  return figure, [*figure.subplots(rows, columns, squeeze=False).flat]


def few_ticks(axis: Axis, most: int) -> None:
  """Marks at most so many round numbers, in few characters each.

  How many must not follow from the size of the axes: that follows from the width of the numbers.
  """
  axis.set_major_locator(MaxNLocator(nbins=most, steps=[1, 2, 2.5, 5, 10]))
  axis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))


def log_ticks(axis: Axis) -> None:
  """Marks 1, 2 and 5 times powers of ten on a logarithmic scale."""
  axis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=12))
  axis.set_minor_locator(NullLocator())
  axis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))


def layer_ticks(axis: Axis, most: int) -> None:
  """Marks at most so many whole numbers."""
  axis.set_major_locator(MaxNLocator(nbins=most, integer=True, steps=[1, 2, 5, 10]))


def short(value: float) -> str:
  """A tick's number: 0.025, 2.5e-05, 150k."""
  sizes = ((1e6, 1e6, "M"), (1e4, 1e3, "k"))
  scale, unit = next(((scale, unit) for least, scale, unit in sizes if least <= abs(value) < 1e9), (1.0, ""))
  return f"{value / scale:g}{unit}".replace("-", "\u2212")


def plain(text: str) -> str:
  """What the figures' font can draw; a name from a file may hold anything."""
  return "".join(letter if " " <= letter <= "~" else "?" for letter in text[:60])


def to_png(figure: Figure) -> bytes:
  """The figure on white, sharp enough for a slide."""
  out = io.BytesIO()
  figure.savefig(
    out, format="png", dpi=180, facecolor="white", bbox_inches="tight", pad_inches=0.2, metadata={"Software": None}
  )
  return out.getvalue()


def to_svg(figure: Figure, name: str) -> str:
  """The figure as one `<svg>` element for a page: clear background, ids that start with `name`, colours as variables.

  A palette colour becomes `var(--chart-ROLE)`, so that the page's light and dark styles choose it.
  """
  out = io.StringIO()
  figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
  svg = out.getvalue()
  svg = svg[svg.index("<svg") :]
  svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
  # The page sets the size; the view box keeps the shape.
  svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
  svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
  # A hundredth of a point cannot be seen.
  svg = re.sub(r' d="[^"]*"', lambda path: re.sub(r"(\.\d\d)\d+", r"\1", path[0]), svg)
  svg = re.sub(r'(?<=\bid=")|(?<=url\(#)|(?<=href="#)', f"{name}-", svg)
  for role, colour in PALETTE.items():
    svg = svg.replace(colour, f"var(--chart-{role})")
  return svg
