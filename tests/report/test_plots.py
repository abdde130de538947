"""Figures: only of what there is, the same bytes each time, and safe to put into a page."""

import math
import xml.etree.ElementTree as ET

import pytest

from jaxchop.report.figure import PALETTE, style, to_png, to_svg
from jaxchop.report.plots import charts, loss_figure, perplexity_figure, score_figure, speed_figure
from jaxchop.report.results import Measured, Run, Score, Step, read_run


def losses(values):
  return [Step(step=n, loss=value, tokens_per_second=None) for n, value in enumerate(values)]


def svg(figure) -> str:
  return to_svg(figure, "test")


def test_a_run_has_four_figures_and_an_empty_one_none(make_run):
  assert list(charts(read_run(make_run()))) == ["scores", "loss", "perplexity", "speed"]
  assert charts(Run(name="empty")) == {}


def test_figures_are_the_same_bytes_each_time(make_run):
  with style():
    for chart in charts(read_run(make_run())).values():
      first, second = chart.draw(3.0), chart.draw(3.0)
      assert (to_svg(first, "a"), to_png(first)) == (to_svg(second, "a"), to_png(second))


def test_an_svg_is_well_formed_and_every_reference_in_it_has_its_target(make_run):
  with style():
    for chart in charts(read_run(make_run())).values():
      root = ET.fromstring(to_svg(chart.draw(4.0), chart.name))
      ids = {element.get("id") for element in root.iter()} - {None}
      used = {element.get("{http://www.w3.org/1999/xlink}href") for element in root.iter()} - {None}
      assert all(name.startswith(f"{chart.name}-") for name in ids)
      assert {name.removeprefix("#") for name in used} <= ids


def test_colours_are_left_to_the_page(make_run):
  with style():
    text = "".join(svg(chart.draw(4.0)) for chart in charts(read_run(make_run())).values())
  assert not [colour for colour in PALETTE.values() if colour in text]
  assert all(f"var(--chart-{role})" in text for role in ("ink", "pruned", "recovered", "original"))


def test_removed_layers_alone_are_hatched():
  score = Score(name="magnitude_l1", definition="", per_layer=(1.0, 2.0, 3.0))
  with style():
    bars = score_figure([score], [1], 4.0).axes[0].patches
  assert [bool(bar.get_hatch()) for bar in bars] == [False, True, False]


def test_a_few_huge_scores_do_not_flatten_the_others():
  score = Score(name="perplexity", definition="", per_layer=(11_053.0, 549.0, *[20.0] * 27, math.inf))
  with style():
    axes = score_figure([score], [], 4.0).axes[0]
  assert axes.get_ylim()[1] == 50.0
  caption = charts(Run(name="run", scores=(score,)))["scores"].caption
  assert caption == "Cut at the top, perplexity: layer 0 (11,053), layer 1 (549.0), layer 29 (∞)."


@pytest.mark.parametrize("per_layer", [(0.0,), (-1.0, 2.0), (None, 1.0), (math.nan, 1.0), (0.0, 0.0), (1e300, 1e-300)])
def test_odd_scores_can_be_drawn(per_layer):
  with style():
    assert to_png(score_figure([Score(name="x", definition="", per_layer=per_layer)], [0], 4.0))


@pytest.mark.parametrize("name", ["$x^{$", "名前", "<script>", "a" * 500, "\x00"])
def test_any_criterion_name_can_be_drawn(name):
  with style():
    ET.fromstring(svg(score_figure([Score(name=name, definition="", per_layer=(1.0, 2.0))], [], 4.0)))


@pytest.mark.parametrize("values", [[2.0], [2.0, math.nan, 1.0], [math.inf, 2.0], [2.0] * 5])
def test_odd_losses_can_be_drawn(values):
  with style():
    assert to_png(loss_figure(losses(values), 4.0))


def test_a_long_loss_curve_is_drawn_with_few_points_and_all_steps():
  with style():
    line = loss_figure(losses([1.0, 3.0] * 5000), 4.0).axes[0].lines[0]
  assert len(line.get_xdata()) <= 600 and line.get_xdata()[-1] == 9999
  assert all(value == pytest.approx(2.0, abs=0.1) for value in line.get_ydata())


def test_perplexities_far_apart_are_drawn_on_a_log_scale():
  def figure(pruned):
    models = [
      Measured(name="original", perplexity=(("A", 12.0),)),
      Measured(name="pruned", perplexity=(("A", pruned),)),
    ]
    with style():
      return perplexity_figure(models, 4.0).axes[0]

  assert figure(27.0).get_xscale() == "linear" and figure(27.0).get_xlim()[0] == 0
  assert figure(9000.0).get_xscale() == "log" and figure(9000.0).get_xlim()[0] == 1
  assert figure(math.inf).get_xscale() == "linear"


def test_two_protocols_never_share_a_figure():
  models = [Measured(name="original", perplexity=(("A", 12.0),)), Measured(name="pruned", perplexity=(("B", 3.0),))]
  with style():
    assert len(perplexity_figure(models, 4.0).axes[0].patches) == 1


@pytest.mark.parametrize("rate", [0.0, math.inf, 1e-9, 1e12])
def test_odd_speeds_can_be_drawn(rate):
  models = [Measured(name="original", decode=2.0, prefill=None), Measured(name="pruned", decode=rate)]
  with style():
    assert to_png(speed_figure(models, 4.0))
