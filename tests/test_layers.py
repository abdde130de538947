"""Layer lists: 0-based, half-open, said in words."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxchop.errors import UsageError
from jaxchop.layers import in_words, parse_layers, spans, without


@pytest.mark.parametrize(
  ("text", "layers"),
  [("21:29", tuple(range(21, 29))), ("3", (3,)), ("7, 3,21:23", (3, 7, 21, 22)), ("29:30", (29,))],
)
def test_ranges_are_half_open_and_lists_are_sorted(text, layers):
  assert parse_layers(text, 30) == layers


@pytest.mark.parametrize("text", ["", "a", "-1", "3:", ":4", "4:4", "5:4", "30", "29:31", "3,3", "1:4,2", "1.5"])
def test_what_is_no_layer_list_is_refused_with_its_text(text):
  with pytest.raises(UsageError, match="layers"):
    parse_layers(text, 30)


def test_a_removal_is_said_in_words():
  keep = without(range(21, 29), 32)
  assert in_words(keep, 32) == "removes layers 21..28, keeps 0..20 and 29..31"
  assert in_words(without([5], 7), 7) == "removes layer 5, keeps 0..4 and 6"
  assert in_words(range(3), 3) == "removes no layer, keeps 0..2"


@pytest.mark.parametrize(
  "keep, layers, said",
  [
    ([*range(21), 29, 30, 31], 32, "removes layers 21..28, keeps 0..20 and 29..31"),
    ([0, 2, 4], 5, "removes layers 1 and 3, keeps 0, 2 and 4"),
    ([1, 2], 3, "removes layer 0, keeps 1..2"),
    ([0, 1], 2, "removes no layer, keeps 0..1"),
  ],
)
def test_a_keep_list_is_said_in_words(keep, layers, said):
  assert in_words(keep, layers) == said


@given(st.sets(st.integers(0, 40), min_size=1))
def test_words_name_every_layer_and_no_other(layers):
  text = spans(sorted(layers)).replace(" and ", ",").replace(", ", ",")
  named = [int(x) for x in text.replace("..", ",").split(",")]
  assert set(named) <= layers
  assert parse_layers(",".join(_half_open(part) for part in text.split(",")), 41) == tuple(sorted(layers))


def _half_open(part: str) -> str:
  first, _, last = part.partition("..")
  return f"{first}:{int(last or first) + 1}"
