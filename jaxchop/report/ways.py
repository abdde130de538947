"""A comparison of ways back to quality: how they stand against the first one, as rows, as a table and as a plot.

Shapes: N held-out windows, S seeds.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from scipy.special import stdtrit

from jaxchop import wording
from jaxchop.evaluate.perplexity import error_of_mean
from jaxchop.report.figure import PALETTE, few_ticks, log_ticks, new_figure, plain, style, to_png

# Standard errors of a 95 % interval.
_WIDE = 1.96
_MARKERS = "osD^vP*Xph<>"
_BUDGETS = {"tokens": "at equal tokens", "flops": "at equal FLOPs"}


def rows(runs: Sequence[Mapping[str, Any]], before: Mapping[str, Any]) -> list[dict[str, Any]]:
  """Returns one row a budget and way: means over seeds, and what lies between it and the first way of that budget.

  `difference` is of nats a token, this way's less the first one's, seed by seed and window by window; its 95 %
  `interval` counts windows and seeds as drawn at random, windows alone where there is one seed. Seeds that the first
  way has not been run with yet are left out of it.
  """
  found = []
  for budget in dict.fromkeys(run["budget"] for run in runs):
    mine = [run for run in runs if run["budget"] == budget]
    ways: dict[str, dict[int, Mapping[str, Any]]] = {}
    for run in mine:
      ways.setdefault(run["way"], {})[run["seed"]] = run
    first = next(iter(ways.values()))
    for way, by_seed in ways.items():
      found.append({"way": way, "budget": budget, **_means(list(by_seed.values()), before)})
      if by_seed is not first and not found[-1]["control"]:
        pairs = [(run, first[seed]) for seed, run in by_seed.items() if seed in first]
        found[-1] |= _difference(pairs)
  return found


def _means(runs: Sequence[Mapping[str, Any]], before: Mapping[str, Any]) -> dict[str, Any]:
  nll = float(np.mean([run["nll"] for run in runs]))
  gap = before["pruned"]["nll"] - before["original"]["nll"]
  control = runs[0]["control"]
  return {
    "control": control,
    "seeds": len(runs),
    "perplexity": math.exp(nll),
    "nll": nll,
    "nll_error": float(np.mean([run["nll_error"] or 0.0 for run in runs])),
    "gap_closed": None if control or gap <= 0 else (before["pruned"]["nll"] - nll) / gap,
    "tokens": runs[0]["spent"]["tokens"],
    "flops": runs[0]["flops"],
    "seconds": float(np.median([run["spent"]["seconds"] for run in runs])),
    "trained": runs[0]["trained"]["parameters"],
  }


def _difference(pairs: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> dict[str, Any]:
  tokens_N = np.array(pairs[0][0]["window_tokens"])
  apart_SN = np.array([np.subtract(run["window_nll"], first["window_nll"]) for run, first in pairs])
  mean = float(apart_SN.mean(0).sum() / tokens_N.sum())
  # Variance of the mean by source, and the degrees of freedom that it is known with.
  parts = [((error_of_mean(apart_SN.mean(0), tokens_N) or 0.0) ** 2, len(tokens_N) - 1)]
  if len(pairs) > 1:
    parts.append((float((apart_SN.sum(1) / tokens_N.sum()).var(ddof=1)) / len(pairs), len(pairs) - 1))
  half = _half_width(parts)
  return {"difference": mean, "interval": [mean - half, mean + half]}


def _half_width(parts: Sequence[tuple[float, int]]) -> float:
  """Returns half of the 95 % interval of a sum of variances, each known with few degrees of freedom.

  Two seeds alone say little about a third: Student's t, with the degrees of Welch and Satterthwaite.
  """
  variance = sum(part for part, _ in parts)
  if not variance:
    return 0.0
  degrees = variance**2 / sum(part**2 / freedom for part, freedom in parts if part)
  return float(stdtrit(degrees, 0.975)) * math.sqrt(variance)


def markdown(found: Mapping[str, Any]) -> str:
  """Returns the comparison as tables for a document."""
  before = ", ".join(f"{name} {found[name]['perplexity']:.2f}" for name in ("original", "pruned"))
  lines = [f"The plan {found['plan']}. Perplexity before any training: {before} ({found['protocol']}).", ""]
  if found["left"]:
    lines += [f"{found['left']} runs are still to be made.", ""]
  for budget in dict.fromkeys(row["budget"] for row in found["rows"]):
    mine = [row for row in found["rows"] if row["budget"] == budget]
    lines += [f"### {_BUDGETS[budget].capitalize().replace('flops', 'FLOPs')}", ""]
    lines += [f"| {' | '.join(HEAD)} |", f"|---|{'---:|' * (len(HEAD) - 1)}"]
    lines += [f"| {' | '.join(cells(row, mine[0]['way']))} |" for row in mine] + [""]
  return "\n".join(lines)


HEAD = ("way", "perplexity", "nats against the first", "gap closed", "tokens", "FLOPs", "seconds", "trained", "seeds")


def cells(row: Mapping[str, Any], first: str) -> tuple[str, ...]:
  """Returns a row in words, under `HEAD`."""
  against = "control" if row["control"] else "first" if row["way"] == first else "–"
  if "difference" in row:
    low, high = row["interval"]
    against = f"{row['difference']:+.3f} ({low:+.3f} to {high:+.3f})"
  closed = "–" if row["gap_closed"] is None else wording.percent(row["gap_closed"])
  numbers = wording.count(row["tokens"]), f"{row['flops']:.2e}", f"{row['seconds']:.0f}", wording.count(row["trained"])
  return row["way"], f"{row['perplexity']:.2f}", against, closed, *numbers, str(row["seeds"])


def plot(found: Mapping[str, Any]) -> bytes:
  """Returns a PNG of perplexity against FLOPs, tokens and time; lines are 95 % intervals over held-out windows."""
  with style():
    figure, panels = new_figure(10.5, 3.6, 1, 3)
    names = list(dict.fromkeys(row["way"] for row in found["rows"]))
    for panel, (key, words) in zip(
      panels, (("flops", "FLOPs"), ("tokens", "tokens"), ("seconds", "seconds of steps")), strict=True
    ):
      _panel(panel, found, key, words, names)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center")
    return to_png(figure)


def _panel(panel: Axes, found: Mapping[str, Any], key: str, words: str, names: Sequence[str]) -> None:
  colours = _colours(len(names))
  for name, colour, marker in zip(names, colours, _MARKERS * len(names), strict=False):
    mine = [row for row in found["rows"] if row["way"] == name]
    x, y = [row[key] for row in mine], [row["perplexity"] for row in mine]
    error = [[row["perplexity"] * (1 - math.exp(-_WIDE * row["nll_error"])) for row in mine]]
    error.append([row["perplexity"] * (math.exp(_WIDE * row["nll_error"]) - 1) for row in mine])
    panel.errorbar(x, y, error, fmt=marker, color=colour, markersize=5, elinewidth=0.8, label=plain(name), alpha=0.85)
  for name in ("original", "pruned"):
    if name == "original" or found[name]["perplexity"] < 3 * max(row["perplexity"] for row in found["rows"]):
      panel.axhline(found[name]["perplexity"], color=PALETTE["muted"], linewidth=0.8, linestyle="--")
      panel.annotate(name, (0, found[name]["perplexity"]), color=PALETTE["muted"], va="bottom", fontsize=8)
  panel.set_xlim(0, 1.1 * max(row[key] for row in found["rows"]))
  panel.set_yscale("log")
  log_ticks(panel.yaxis)
  panel.set_title(f"Perplexity against {words}")
  panel.grid(axis="y")
  few_ticks(panel.xaxis, 4)


def _colours(count: int) -> list[str]:
  roles = ["recovered", "pruned", "original", "ink", "muted"]
  steps = [f"heat-{step}" for step in (4, 8, 12, 15, 2, 6, 10)]
  return [PALETTE[role] for role in (*roles, *steps)][:count] + [PALETTE["ink"]] * max(count - 12, 0)
