"""Figures: only of what there is, the same bytes each time, and safe to put into a page."""

import math
import xml.etree.ElementTree as ET

import pytest

from jaxchop.report.figure import PALETTE, style, to_png, to_svg
from jaxchop.report.plots import NARROW, charts, loss_figure, perplexity_figure, speed_figure
from jaxchop.report.results import Measured, Run, Step, read_run


def losses(values):
  return [Step(step=n, loss=value, tokens_per_second=None) for n, value in enumerate(values)]


def svg(figure) -> str:
  return to_svg(figure, "test")


def test_a_run_has_four_figures_and_an_empty_one_none(make_run):
  assert list(charts(read_run(make_run()))) == ["scores", "loss", "perplexity", "speed"]
  assert charts(Run(name="empty")) == {}


def test_many_criteria_have_figures_of_their_own(make_scored):
  found = charts(make_scored())
  assert list(found) == ["scores", "criteria", "runs", "states", "agreement"]
  with style():
    assert found["scores"].draw(7.4).axes[0].get_title(loc="left") == "angular"
    assert [text.get_text() for text in found["runs"].draw(7.4).legends[0].get_texts()] == ["removed: layers 3..4"]
  assert "agreement of 6 criteria on which 2 layers" in found["agreement"].words


def test_without_a_plan_no_criterion_is_larger_and_no_run_is_marked(make_scored):
  found = charts(make_scored(plan=None))
  assert list(found) == ["criteria", "runs", "states", "agreement"]
  with style():
    assert not found["runs"].draw(7.4).legends and not found["criteria"].draw(7.4).legends


@pytest.mark.parametrize(
  "changed",
  [
    # The criterion chooses no run; the layers are none.
    {"criterion": {"name": "cka"}},
    {"drop": [3, 5], "keep": [0, 1, 2, 4, 6, 7]},
  ],
)
def test_only_a_run_that_the_rule_chose_is_marked(make_scored, many_plan, changed):
  with style():
    assert not charts(make_scored(plan={**many_plan, **changed}))["runs"].draw(7.4).legends


def test_there_is_no_figure_without_its_numbers(make_scored, many_scores):
  many_scores["windows"], many_scores["pairs"] = {}, {}
  for name in ("angular", "perplexity_run"):
    many_scores["criteria"][name]["run_share"] = None
  assert list(charts(make_scored(scores=many_scores))) == ["scores", "criteria", "agreement"]
  del many_scores["bootstrap"]
  many_scores["criteria"] = {"cka": many_scores["criteria"]["cka"]}
  assert list(charts(make_scored(scores=many_scores))) == ["scores"]


def drawn_labels(figure, size) -> list[list[str]]:
  figure.set_size_inches(size)
  figure.draw_without_rendering()
  return [[label.get_text() for label in axes.get_yticklabels()] for axes in figure.axes]


@pytest.mark.parametrize("width", ["wide", NARROW])
def test_nothing_stands_beyond_the_edge(make_run, make_scored, width):
  scores = {"criteria": {"block_influence": {"per_layer": [0.99, 0.18, *[0.05] * 26, 0.15, 0.36]}}}
  runs = read_run(make_run(scores=scores)), make_scored()
  with style():
    for chart in (chart for run in runs for chart in charts(run).values()):
      figure = chart.draw(chart.wide if width == "wide" else width)
      size = figure.get_size_inches()
      labels = drawn_labels(figure, size)
      drawn = figure.get_tightbbox()
      assert min(drawn.min) >= 0 and all(drawn.max <= size), chart.name
      # Room is made for the labels before the size of the axes is known, so they must be the same at any size.
      assert labels == drawn_labels(figure, 3 * size) == drawn_labels(figure, 0.8 * size), chart.name


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
