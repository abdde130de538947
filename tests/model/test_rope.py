"""Rotary embeddings turn by position, and each scaling does to the frequencies what it is named for."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import tiny_llama

from jaxchop.compiler import compiler_options
from jaxchop.model import rope
from jaxchop.model.config import Rope
from jaxchop.model.llama import hidden
from jaxchop.model.rope import rotate, rotation

CONFIG = dataclasses.replace(tiny_llama().config, head_dim=16, max_positions=32)


def turn(positions, **rope):
  return rotation(dataclasses.replace(CONFIG, rope=Rope(**rope)), jnp.asarray(positions)[None])


def test_turning_keeps_lengths_and_scores_depend_on_distance_alone():
  x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 6, 2, 16)), jnp.float32)
  one = jnp.broadcast_to(x[:, :1], x.shape)
  early, late = rotate(one, *turn(range(6))), rotate(one, *turn(range(20, 26)))
  np.testing.assert_allclose(jnp.linalg.norm(early, axis=-1), jnp.linalg.norm(one, axis=-1), rtol=1e-5)
  early_BNTS, late_BNTS = (jnp.einsum("BTNH,BSNH->BNTS", y, y) for y in (early, late))
  np.testing.assert_allclose(early_BNTS, late_BNTS, atol=1e-4)
  np.testing.assert_array_equal(rotate(x, *turn([0] * 6)), x)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_on_a_tpu_halves_are_swapped_by_a_product_to_the_same_bits(monkeypatch, dtype):
  x_BTNH = jax.random.normal(jax.random.key(0), (2, 5, 3, 8)).astype(dtype)
  turn = rotation(dataclasses.replace(tiny_llama().config, head_dim=8), jnp.arange(5)[None])

  def turned(x_BTNH):
    y_BTNH, pull = jax.vjp(lambda x: rotate(x, *turn), x_BTNH)
    return y_BTNH, pull(x_BTNH)[0]

  wanted = turned(x_BTNH)
  monkeypatch.setattr(rope, "target", lambda: SimpleNamespace(platform="tpu"))
  assert "dot_general" in str(jax.make_jaxpr(lambda x: rotate(x, *turn))(x_BTNH))
  for a, b in zip(turned(x_BTNH), wanted, strict=True):
    np.testing.assert_array_equal(np.asarray(a, np.float32), np.asarray(b, np.float32))


@pytest.mark.optimised
def test_a_compiled_model_computes_its_cosines_once():
  model, ids_BT = tiny_llama(layers=2), jnp.zeros((2, 160), jnp.int32)

  def loss(model):
    return hidden(model, ids_BT, layout="unrolled", remat="none").sum()

  compiled = jax.jit(jax.grad(loss), compiler_options=compiler_options()).lower(model).compile()
  assert compiled.as_text().count("cosine(") == 1


def test_linear_divides_positions():
  np.testing.assert_allclose(turn([8, 40], kind="linear", factor=4.0), turn([2, 10]), atol=1e-6)


def test_dynamic_is_the_default_up_to_max_positions_and_slower_beyond():
  for found, plain in zip(turn(range(32), kind="dynamic", factor=4.0), turn(range(32)), strict=True):
    np.testing.assert_allclose(found, plain, atol=1e-5)
  assert abs(turn(range(40), kind="dynamic", factor=4.0)[0] - turn(range(40))[0]).max() > 0.1


def test_llama3_keeps_short_waves_and_divides_long_ones():
  rope = {"kind": "llama3", "factor": 8.0, "original_max_positions": 64}
  cos, plain = turn([8], **rope)[0][0, 0], turn([8])[0][0, 0]
  assert cos[0] == plain[0]
  np.testing.assert_allclose(cos[-1], turn([1])[0][0, 0, -1], atol=1e-6)


def test_yarn_scales_cos_and_sin_and_is_the_default_at_factor_one():
  rope = {"kind": "yarn", "original_max_positions": 16}
  np.testing.assert_allclose(turn(range(9), **rope, factor=1.0), turn(range(9)), atol=1e-6)
  assert turn([0], **rope, factor=4.0)[0][0, 0, 0] == pytest.approx(0.1 * np.log(4.0) + 1)
  assert turn([0], **rope, factor=4.0, attention_factor=1.5)[0][0, 0, 0] == pytest.approx(1.5)
