"""An architecture that cannot be is refused where it is named."""

import pytest
from tiny import tiny_llama


@pytest.mark.parametrize(
  "setting, words",
  [({"width": 0}, "width is 0"), ({"kv_heads": 3}, "4 query heads cannot share 3"), ({"head_dim": 5}, "head_dim is 5")],
)
def test_an_impossible_shape_is_refused(setting, words):
  with pytest.raises(ValueError, match=words):
    tiny_llama(**setting)
