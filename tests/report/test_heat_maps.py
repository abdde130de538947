"""Heat maps: every cell has the colour and number of its value, the removed run is marked, names stand on the axes."""

import math
import xml.etree.ElementTree as ET

import pytest

from jaxchop.report.choices import choices
from jaxchop.report.figure import HEAT_STEPS, PALETTE, style, to_png, to_svg
from jaxchop.report.heat_maps import agreement_figure, run_of, runs_figure, states_figure
from jaxchop.report.scored import Score


def step_at(axes, x, y) -> int | None:
  """The step of the colour at a place, None where nothing is drawn."""
  for shape in axes.patches:
    if "-cells-" in (shape.get_gid() or "") and shape.get_path().contains_point((x, y)):
      step = int(shape.get_gid().rpartition("-")[2])
      assert shape.get_facecolor()[:3] == pytest.approx(rgb(PALETTE[f"heat-{step}"]))
      return step
  return None


def rgb(colour: str) -> list[float]:
  return [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]


def runs(rows, name="angular"):
  return Score(name=name, definition="", per_layer=tuple(rows[0]), runs=tuple(map(tuple, rows)))


def test_a_cell_is_where_its_run_is_with_the_colour_of_its_score():
  with style():
    axes = runs_figure([runs([[1.0, 2.0, 3.0], [4.0, 5.0], [17.0]])], [], 3.7).axes[0]
  steps = {(start, size): step_at(axes, start, size) for size in (1, 2, 3) for start in range(3)}
  # From 1 to 17 a step is 1.
  assert steps == {
    **{(0, 1): 0, (1, 1): 1, (2, 1): 2, (0, 2): 3, (1, 2): 4, (0, 3): 15},
    **{(2, 2): None, (1, 3): None, (2, 3): None},
  }
  assert axes.get_xlim() == (-0.5, 2.5) and axes.get_ylim() == (0.5, 3.5)
  assert (axes.xaxis.label.get_text(), axes.yaxis.label.get_text()) == ("first layer", "layers in the run")


def test_scores_over_a_huge_range_are_on_a_log_scale_that_ends_somewhere():
  with style():
    panels = runs_figure([runs([[10.0, 100.0, 1e3], [1e5, math.inf]], "perplexity_run")], [], 3.7).axes
  axes, bar = panels
  assert axes.get_title(loc="left") == "perplexity run (log scale)"
  # 10 to 10,000 in 16 steps: a factor of 10 is five and a third.
  assert [step_at(axes, start, 1) for start in range(3)] == [0, 5, 10]
  assert [step_at(axes, start, 2) for start in range(2)] == [15, 15]
  assert bar.get_yscale() == "log" and bar.get_ylim() == pytest.approx((10.0, 10_000.0))


def test_the_colour_bar_names_scores_of_the_panel():
  with style():
    figure = runs_figure([runs([[0.1, 0.2], [0.5]])], [], 3.7)
    figure.draw_without_rendering()
  assert [label.get_text() for label in figure.axes[1].get_yticklabels()] == ["0.1", "0.2", "0.3", "0.4", "0.5"]


def test_there_is_a_panel_a_criterion_and_two_in_a_row_on_a_wide_page(make_scored):
  scores = [score for score in make_scored().scores if score.runs]
  with style():
    wide, narrow = runs_figure(scores, [], 7.4), runs_figure(scores, [], 3.7)
  assert [axes.get_title(loc="left") for axes in wide.axes[:2]] == ["angular", "perplexity run (log scale)"]
  assert (wide.axes[0].get_gridspec().ncols, narrow.axes[0].get_gridspec().ncols) == (2, 1)


def test_the_removed_run_is_framed_and_named():
  with style():
    figure = runs_figure([runs([[1.0, 2.0, 3.0, 1.0], [1.0, 4.0, 1.0], [1.0, 1.0], [1.0]])], [1, 2], 3.7)
  (frame,) = [shape for shape in figure.axes[0].patches if "-cells-" not in (shape.get_gid() or "")]
  # The two layers from layer 1 on.
  assert (*frame.get_xy(), frame.get_width(), frame.get_height()) == (0.5, 1.5, 1, 1)
  assert frame.get_edgecolor()[:3] == pytest.approx(rgb(PALETTE["pruned"]))
  assert [text.get_text() for text in figure.legends[0].get_texts()] == ["removed: layers 1..2"]


def test_without_a_removed_run_nothing_is_framed():
  with style():
    figure = runs_figure([runs([[1.0, 2.0], [4.0]])], [], 3.7)
  assert not figure.legends and all("-cells-" in (shape.get_gid() or "") for shape in figure.axes[0].patches)


@pytest.mark.parametrize(("layers", "run"), [((3, 4, 5), True), ((3,), True), ((3, 5), False), ((), False)])
def test_a_run_has_no_gap(layers, run):
  assert run_of(layers) == run


def test_each_two_states_have_a_cell(make_scored):
  (score,) = [score for score in make_scored().scores if score.pairs]
  with style():
    axes = states_figure(score, 4.4).axes[0]
  assert axes.get_title(loc="left") == "CKA of each two states"
  # 0.2 to 1 in 16 steps; states far apart are the least alike.
  assert [step_at(axes, 0, state) for state in range(9)] == [15, 14, 12, 10, 8, 6, 4, 2, 0]
  assert all(step_at(axes, a, b) == step_at(axes, b, a) is not None for a in range(9) for b in range(9))
  assert step_at(axes, 8, 8) == 15 and step_at(axes, 9, 9) is None


def test_agreement_has_its_numbers_in_the_cells_and_names_on_both_axes(make_scored):
  with style():
    axes = agreement_figure(choices(make_scored()), 7.4).axes[0]
  names = ["magnitude l1", "block influence", "angular", "perplexity run", "cka", "perplexity greedy"]
  assert [label.get_text() for label in axes.get_xticklabels()] == names
  assert [label.get_text() for label in axes.get_yticklabels()] == names
  words = {text.get_position(): text.get_text() for text in axes.texts}
  assert len(words) == 36
  # Layers 2 5, 3 4, 3 4, 2 3, 6 7 and 3 5.
  assert [words[x, 1] for x in range(6)] == ["0", "100", "100", "33", "0", "33"]
  assert [words[3, y] for y in range(6)] == ["33", "33", "33", "100", "0", "33"]
  assert (step_at(axes, 0, 0), step_at(axes, 3, 1), step_at(axes, 4, 1)) == (HEAT_STEPS - 1, 5, 0)
  # The first criterion stands on top.
  assert axes.yaxis_inverted()


def test_text_turns_where_the_cells_do(make_scored):
  with style():
    axes = agreement_figure(choices(make_scored()), 7.4).axes[0]
  colours = {text.get_text(): text.get_color() for text in axes.texts}
  assert colours["100"] == PALETTE["on-heat"] and colours["33"] == colours["0"] == PALETTE["ink"]


@pytest.mark.parametrize(
  "rows", [[[0.0]], [[2.0, 2.0], [2.0]], [[-1.0, 1.0], [math.nan]], [[1e-300, 1e300], [math.inf]]]
)
def test_odd_scores_of_runs_can_be_drawn(rows):
  with style():
    assert to_png(runs_figure([runs(rows)], [0], 3.7))


@pytest.mark.parametrize("name", ["$x^{$", "名前", '"><script>', "a" * 500, "\x00"])
def test_any_name_can_be_drawn_and_is_part_of_no_tag(name):
  with style():
    text = to_svg(runs_figure([runs([[1.0, 2.0], [3.0]], name)], [0], 3.7), "test")
  ET.fromstring(text)
  assert "<script>" not in text
