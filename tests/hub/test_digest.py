"""digest: the same for the same dtype, shape and bytes, however they are cut, and for nothing else."""

import ml_dtypes
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from jaxchop.hub.digest import combine, tensor_digest

FLOAT = np.dtype(np.float32)


@given(cuts=st.lists(st.integers(0, 400), max_size=8).map(sorted))
def test_a_digest_does_not_depend_on_the_blocks(cuts):
  raw = np.linspace(-1, 1, 100).astype(np.float32).view(np.uint8)
  assert tensor_digest(FLOAT, (100,), np.split(raw, cuts)) == tensor_digest(FLOAT, (100,), [raw])


def test_a_digest_tells_dtype_and_shape_apart():
  zeros = np.zeros(8, np.uint8)
  kinds = [(np.float16, (4,)), (ml_dtypes.bfloat16, (4,)), (np.float16, (2, 2)), (np.float32, (2,))]
  assert len({tensor_digest(np.dtype(dtype), shape, [zeros]) for dtype, shape in kinds}) == 4


def test_a_model_s_digest_follows_names_and_tensors_but_not_their_order():
  assert combine({"a": "1", "b": "2"}) == combine({"b": "2", "a": "1"})
  assert len({combine({"a": "1", "b": "2"}), combine({"a": "2", "b": "1"}), combine({"a": "1"}), combine({})}) == 4
