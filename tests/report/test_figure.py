"""The palette in both styles of the page, and numbers on axes."""

import re
from importlib.resources import files

import pytest

from jaxchop.report.figure import HEAT_STEPS, PALETTE, log_ticks, new_figure, short, style


def styles() -> list[dict[str, str]]:
  """Role and colour in the light and in the dark style."""
  light, dark = (files("jaxchop.report") / "page.css").read_text().split("@media (prefers-color-scheme: dark)")
  return [dict(re.findall(r"--chart-([\w-]+): (#\w{6})", text)) for text in (light, dark)]


def contrast(one: str, other: str) -> float:
  """The contrast of two colours by WCAG 2.1, 1 to 21."""
  parts = [[int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)] for colour in (one, other)]
  linear = [[v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in part] for part in parts]
  dark, light = sorted(0.2126 * r + 0.7152 * g + 0.0722 * b for r, g, b in linear)
  return (light + 0.05) / (dark + 0.05)


def test_the_page_has_every_colour_for_light_and_for_dark():
  for one in styles():
    assert set(one) == set(PALETTE)


def test_no_two_roles_have_the_same_colour():
  # An SVG's colours are told apart by it.
  assert len(set(PALETTE.values())) == len(PALETTE)


@pytest.mark.parametrize("which", [0, 1])
def test_text_can_be_read_on_every_step(which):
  style = styles()[which]
  for step in range(HEAT_STEPS):
    text = style["ink" if step < 9 else "on-heat"]
    assert contrast(text, style[f"heat-{step}"]) >= 4


@pytest.mark.parametrize("which", [0, 1])
def test_every_step_is_further_from_the_paper(which):
  style = styles()[which]
  # Text on the upper steps is of the colour of paper.
  far = [contrast(style["on-heat"], style[f"heat-{step}"]) for step in range(HEAT_STEPS)]
  assert far == sorted(far)


@pytest.mark.parametrize(
  ("value", "words"),
  [
    (0.0, "0"),
    (0.025, "0.025"),
    (2.5e-5, "2.5e\u221205"),
    (0.1 + 0.2, "0.3"),
    (2000, "2000"),
    (150_000, "150k"),
    (2_500_000, "2.5M"),
    (-20.0, "\u221220"),
    (1e12, "1e+12"),
  ],
)
def test_a_tick_is_short(value, words):
  assert short(value) == words


def test_a_logarithmic_axis_has_plain_numbers():
  with style():
    figure, (axes,) = new_figure(4, 3)
    axes.plot([9, 150], [1, 2])
    axes.set_xscale("log")
    log_ticks(axes.xaxis)
    figure.canvas.draw()
    shown = [label.get_text() for label in axes.get_xticklabels()]
  assert {"10", "20", "50", "100"} <= set(shown) and not any("$" in text for text in shown)
