"""Bars of scores: removed layers marked, nothing flattened, any name and number drawn."""

import math
import xml.etree.ElementTree as ET

import pytest

from jaxchop.report.figure import style, to_png, to_svg
from jaxchop.report.plots import charts
from jaxchop.report.results import Run
from jaxchop.report.score_bars import criteria_figure, cut_in_words, score_figure
from jaxchop.report.scored import Score


def score(*per_layer, name="x", interval=()):
  return Score(name=name, definition="", per_layer=per_layer, interval=interval)


def hatched(axes) -> list[bool]:
  return [bool(bar.get_hatch()) for bar in axes.patches]


def test_removed_layers_alone_are_hatched():
  with style():
    figure = score_figure(score(1.0, 2.0, 3.0), [1], 4.0)
  assert hatched(figure.axes[0]) == [False, True, False]
  assert [text.get_text() for text in figure.legends[0].get_texts()] == ["kept", "removed"]


def test_a_bar_is_as_high_as_its_score_and_its_interval_stands_on_it():
  with style():
    axes = score_figure(score(1.0, -2.0, interval=((0.5, 1.5), (-3.0, -1.0))), [], 4.0).axes[0]
  assert [bar.get_height() for bar in axes.patches] == [1.0, -2.0]
  assert [line[:, 1].tolist() for line in axes.collections[0].get_segments()] == [[0.5, 1.5], [-3.0, -1.0]]


def test_every_criterion_has_its_panel_with_the_same_layers_removed(make_scored):
  run = make_scored()
  with style():
    figure = criteria_figure(run.scores, run.plan.drop, 7.4)
  titles = [axes.get_title(loc="left") for axes in figure.axes]
  assert titles == ["magnitude l1", "block influence", "angular", "perplexity run", "cka", "perplexity greedy"]
  assert all(hatched(axes) == [layer in (3, 4) for layer in range(8)] for axes in figure.axes)
  assert [bar.get_height() for bar in figure.axes[0].patches] == list(run.scores[0].per_layer)


@pytest.mark.parametrize(("width", "columns"), [(7.4, 3), (3.7, 2)])
def test_a_phone_has_fewer_panels_in_a_row_and_no_empty_ones(width, columns):
  with style():
    figure = criteria_figure([score(1.0, 2.0)] * 5, [], width)
  assert figure.axes[0].get_gridspec().ncols == columns and len(figure.axes) == 5
  labelled = [place for place, axes in enumerate(figure.axes) if axes.xaxis.label.get_text() == "layer"]
  assert labelled == list(range(5 - columns, 5))


def test_a_few_huge_scores_do_not_flatten_the_others():
  huge = score(11_053.0, 549.0, *[20.0] * 27, math.inf, name="perplexity")
  with style():
    axes = score_figure(huge, [], 4.0).axes[0]
  assert axes.get_ylim()[1] == 50.0
  caption = charts(Run(name="run", scores=(huge,)))["scores"].caption
  assert caption == "Cut at the top, perplexity: layer 0 (11,053), layer 1 (549.0), layer 29 (∞)."


def test_a_cut_leaves_what_is_below_zero_to_be_seen():
  signed = score(100.0, *[-1.0] * 9, 1.0, name="taylor_signed")
  with style():
    axes = score_figure(signed, [], 4.0).axes[0]
  assert axes.get_ylim() == (-1.0, 2.5)
  assert cut_in_words(signed) == "Cut at the top, taylor signed: layer 0 (100.0)."


def test_small_scores_that_are_cut_are_not_called_zero():
  assert "layer 0 (0.00012)" in cut_in_words(score(0.00012, *[1e-6] * 9))


@pytest.mark.parametrize("per_layer", [(0.0,), (-1.0, 2.0), (None, 1.0), (math.nan, 1.0), (0.0, 0.0), (1e300, 1e-300)])
def test_odd_scores_can_be_drawn(per_layer):
  with style():
    assert to_png(score_figure(score(*per_layer), [0], 4.0))
    assert to_png(criteria_figure([score(*per_layer)], [0], 4.0))


@pytest.mark.parametrize("name", ["$x^{$", "名前", "<script>", "a" * 500, "\x00"])
def test_any_criterion_name_can_be_drawn(name):
  with style():
    ET.fromstring(to_svg(score_figure(score(1.0, 2.0, name=name), [], 4.0), "test"))
