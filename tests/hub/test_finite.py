"""finite: no value that is not finite passes, in any type and at any place."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxchop.errors import JaxchopError
from jaxchop.hub.finite import first_not_finite, refuse_not_finite

FLOATS = {"BF16": ml_dtypes.bfloat16, "F16": np.float16, "F32": np.float32, "F64": np.float64}


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
def test_every_pattern_of_16_bits_is_judged_as_numpy_judges_it(dtype):
  patterns = np.arange(2**16, dtype=np.uint16)
  finite = np.isfinite(patterns.view(FLOATS[dtype]).astype(np.float32))
  judged = [first_not_finite(patterns[i : i + 1].view(np.uint8), dtype) is None for i in range(2**16)]
  assert judged == finite.tolist()


@given(
  dtype=st.sampled_from(list(FLOATS)),
  bad=st.sampled_from([np.nan, -np.nan, np.inf, -np.inf]),
  at=st.integers(0, 99),
  before=st.integers(0, 10**9),
)
def test_the_first_bad_value_is_named_wherever_it_stands(dtype, bad, at, before):
  array = np.linspace(-60000, 60000, 100).astype(FLOATS[dtype])
  array[at] = bad
  with pytest.raises(JaxchopError, match=rf"tensor model\.norm\.weight: element {before + at} is -?(nan|inf) as"):
    refuse_not_finite("model.norm.weight", dtype, array.view(np.uint8), before * array.itemsize)


@pytest.mark.parametrize("dtype", FLOATS)
def test_the_largest_and_the_smallest_values_pass(dtype):
  info = ml_dtypes.finfo(FLOATS[dtype])
  values = [info.max, info.min, info.smallest_subnormal, -info.smallest_subnormal, 0.0, -0.0]
  refuse_not_finite("t", dtype, np.array(values, FLOATS[dtype]).view(np.uint8), 0)


def test_whole_numbers_and_no_numbers_pass():
  refuse_not_finite("t", "I32", np.full(8, 255, np.uint8), 0)
  refuse_not_finite("t", "F32", np.zeros(0, np.uint8), 0)
