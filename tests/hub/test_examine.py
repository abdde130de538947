"""examine: digests do not depend on blocks, and no value that is not finite passes."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxchop.errors import JaxchopError
from jaxchop.hub.digest import tensor_digest
from jaxchop.hub.examine import examiner, first_not_finite
from jaxchop.hub.safetensors import DTYPES

FLOATS = {"BF16": ml_dtypes.bfloat16, "F16": np.float16, "F32": np.float32, "F64": np.float64}


def examine(array: np.ndarray, dtype: str, step: int) -> str:
  raw = array.view(np.uint8)
  with examiner() as examined:
    examined.begin("model.norm.weight", dtype, array.shape)
    for start in range(0, raw.size, step * array.itemsize):
      examined.add(raw[start : start + step * array.itemsize])
    examined.finish()
  return examined.digests["model.norm.weight"]


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
  step=st.integers(1, 120),
)
def test_the_first_bad_value_is_named_wherever_it_stands(dtype, bad, at, step):
  array = np.linspace(-60000, 60000, 100).astype(FLOATS[dtype])
  array[at] = bad
  with pytest.raises(JaxchopError, match=rf"model\.norm\.weight: element {at} is -?(nan|inf) as"):
    examine(array, dtype, step)


@given(step=st.integers(1, 120))
def test_the_digest_is_that_of_the_whole(step):
  array = np.linspace(-1, 1, 100).astype(np.float32)
  assert examine(array, "F32", step) == tensor_digest(DTYPES["F32"], (100,), [array])


def test_the_digest_tells_dtype_and_shape_apart():
  zeros = np.zeros(8, np.uint8)
  kinds = [("F16", (4,)), ("BF16", (4,)), ("F16", (2, 2)), ("F32", (2,))]
  assert len({tensor_digest(DTYPES[dtype], shape, [zeros]) for dtype, shape in kinds}) == 4


def test_tensors_in_a_row_each_get_their_own_digest():
  arrays = {f"t{i}": np.full(1000 + i, i, np.float32) for i in range(9)}
  with examiner() as examined:
    for name, array in arrays.items():
      examined.begin(name, "F32", array.shape)
      for part in np.array_split(array, 7):
        examined.add(part.view(np.uint8))
    examined.finish()
  assert examined.digests == {n: tensor_digest(DTYPES["F32"], a.shape, [a]) for n, a in arrays.items()}
