"""A forecast in words and as a plot."""

from collections.abc import Mapping
from typing import Any

from jaxchop import wording
from jaxchop.report.figure import PALETTE, log_ticks, new_figure, style, to_png


def in_words(found: Mapping[str, Any]) -> list[str]:
  """Returns the lines that a person reads."""
  law, enough = found["law"], found["enough"]
  lines = [
    f"loss = {law['floor']:.3f} + {law['scale']:.3g} / tokens^{law['power']:.2f}; the probes are off by at most "
    f"{law['worst']:.3f} nats",
  ]
  if target := found.get("target"):
    lines.append(_target(found, target))
  lines.append(
    f"from {wording.count(enough['tokens'])} tokens on (perplexity {enough['expected']:.2f}), twice as many gain less "
    f"than {enough['gain']:g} nats"
  )
  longest = max(probe["tokens"] for probe in found["probes"])
  return [*lines, f"beyond {wording.count(10 * longest)} tokens, ten times the longest probe, this is a guess"]


def _target(found: Mapping[str, Any], target: Mapping[str, Any]) -> str:
  words, (low, high) = f"perplexity {target['perplexity']:g}", target["interval"]
  if target["tokens"] is None:
    return f"{words}: not to be reached by more tokens; the law's floor is above it"
  rest = f"{wording.count(low)} to {'never' if high is None else wording.count(high)}"
  return f"{words}: {wording.count(target['tokens'])} tokens ({rest}), {work(found, target['tokens'])}"


def work(found: Mapping[str, Any], tokens: float) -> str:
  """Returns what training on so many tokens takes, in words."""
  flops = tokens * found["flops_per_token"]
  hours = flops / found["flops_per_second"] / 3600
  return f"{flops:.1e} FLOP, {hours:.3g} {'chip-hours' if found['chip'] else 'hours here'}"


def plot(found: Mapping[str, Any]) -> bytes:
  """Returns a PNG of the probes, the law through them and its interval, over tokens."""
  with style():
    figure, (axes,) = new_figure(6.4, 3.8)
    points = sorted((*found["probes"], *found["expected"]), key=lambda point: point["tokens"])
    x = [point["tokens"] for point in points]
    lows, highs = zip(*(point["interval"] for point in points), strict=True)
    axes.fill_between(x, lows, highs, color=PALETTE["recovered-soft"], label="95 % interval")
    axes.plot(x, [point["expected"] for point in points], color=PALETTE["recovered"], label="law")
    measured = [(probe["tokens"], probe["perplexity"]) for probe in found["probes"]]
    axes.plot(*zip(*measured, strict=True), "o", color=PALETTE["pruned"], label="probes")
    axes.axhline(
      found["original"]["perplexity"], color=PALETTE["muted"], linestyle="--", linewidth=0.8, label="original"
    )
    axes.set(xscale="log", yscale="log", xlabel="tokens of recovery")
    for axis in (axes.xaxis, axes.yaxis):
      log_ticks(axis)
    axes.set_title(f"Perplexity ({found['protocol'].partition(',')[0]}), expected from {len(measured)} probes")
    axes.grid(axis="y")
    axes.legend()
    return to_png(figure)
