"""An empty figure in the report's style, and a figure as PNG or as SVG that takes its colours from the page."""

import io
import re
from contextlib import AbstractContextManager

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

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
}


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


def new_figure(width: float, height: float, rows: int = 1) -> tuple[Figure, list[Axes]]:
  """A figure of so many inches and its axes, one below the other."""
  figure = Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(h_pad=0.08))
  FigureCanvasAgg(figure)
  return figure, [*figure.subplots(rows, 1, squeeze=False)[:, 0]]


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
  svg = re.sub(r'(?<=\bid=")|(?<=url\(#)|(?<=href="#)', f"{name}-", svg)
  for role, colour in PALETTE.items():
    svg = svg.replace(colour, f"var(--chart-{role})")
  return svg
