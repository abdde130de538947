"""Four bits a weight, as bitsandbytes defines them, computed here in NumPy from the papers' words."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from jaxchop.model.nf4 import Nf4, dynamic_map


def normal_floats() -> np.ndarray:
  """QLoRA, appendix E: quantiles of the normal distribution, eight above zero and seven below, and zero itself."""
  offset = 0.9677083
  above, below = norm.ppf(np.linspace(offset, 0.5, 9)[:-1]), -norm.ppf(np.linspace(offset, 0.5, 8)[:-1])
  values = np.sort(np.concatenate([above, [0.0], below]))
  return (values / values.max()).astype(np.float32)


def nearest(values: np.ndarray, table: np.ndarray) -> np.ndarray:
  return np.abs(values[..., None] - table).argmin(-1)


def expected(kernel_IO: np.ndarray) -> np.ndarray:
  """The value of a kernel in four bits, block by block on the way into each output, scales in eight bits."""
  table, blocks = normal_floats(), kernel_IO.T.reshape(-1, 64)
  scales = np.abs(blocks).max(1)
  offset = scales.mean(dtype=np.float32)
  restored = np.empty_like(scales)
  for start in range(0, len(scales), 256):
    part = scales[start : start + 256] - offset
    top = np.abs(part).max()
    restored[start : start + 256] = dynamic_map()[nearest(part / max(top, 1e-38), dynamic_map())] * top + offset
  shares = blocks / np.maximum(scales, 1e-38)[:, None]
  return (table[nearest(shares, table)] * restored[:, None]).reshape(kernel_IO.T.shape).T


@settings(max_examples=10)
@given(st.integers(0, 2**16), st.floats(1e-4, 10))
def test_a_kernel_in_four_bits_is_what_the_papers_say(seed: int, size: float) -> None:
  kernel = np.random.default_rng(seed).normal(0, size, (192, 500)).astype(np.float32)
  found = np.asarray(Nf4(jnp.asarray(kernel))[...])
  # Of two codes as near as makes no difference, rounding may choose either, of a weight or a block.
  assert (np.abs(found - expected(kernel)) > 1e-6 * np.abs(kernel).max()).mean() < 0.01
  assert np.abs(found - kernel).mean() < 0.1 * size


def test_the_dynamic_type_is_symmetric_but_for_its_one() -> None:
  table = dynamic_map()
  assert len(table) == 256 == len(set(table)) and (table[0], table[-1]) == (-0.99296875, 1.0)
  np.testing.assert_allclose(table[1:127], -table[128:254][::-1], rtol=1e-6)


def test_a_block_of_zeros_stays_zeros_and_leaves_the_others_alone() -> None:
  kernel = np.random.default_rng(0).normal(0, 0.02, (128, 8)).astype(np.float32)
  kernel[:64, 3] = 0
  found = np.asarray(Nf4(jnp.asarray(kernel))[...])
  assert not found[:64, 3].any()
  np.testing.assert_allclose(found, kernel, atol=0.011)


def test_it_takes_half_a_byte_a_weight_and_its_scales() -> None:
  small = jax.jit(Nf4)(jnp.ones((512, 128)))
  total = sum(leaf.nbytes for leaf in jax.tree.leaves(small))
  assert total == 512 * 128 // 2 + 512 * 128 // 64 + 4 * (512 * 128 // 64 // 256) + 4


def test_inputs_that_make_no_blocks_are_refused() -> None:
  with pytest.raises(ValueError, match="100 inputs cannot be cut into blocks of 64"):
    Nf4(jnp.zeros((100, 4)))
