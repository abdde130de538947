"""manifest: a keep-list in words."""

import pytest

from jaxchop.hub.manifest import words


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
  assert words(keep, layers) == said
