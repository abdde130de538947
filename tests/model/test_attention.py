"""Attention in blocks, and from a cache, is attention: the reference is jax.nn.dot_product_attention."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxchop.compiler import Program
from jaxchop.model import attention
from jaxchop.model.placement import striped


def arrays(length, heads=6, kv_heads=2, rows=2, width=4):
  keys = jax.random.split(jax.random.key(length), 3)
  shapes = [(rows, length, count, width) for count in (heads, kv_heads, kv_heads)]
  return [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]


def value_and_gradients(attend, inputs):
  return jax.jit(jax.value_and_grad(lambda *a: jnp.sum(jnp.sin(attend(*a))), (0, 1, 2)))(*inputs)


@pytest.mark.parametrize("length", [1, 4, 11])
def test_blocks_give_the_attention_and_the_gradients_of_the_whole(length, monkeypatch):
  monkeypatch.setattr(attention, "_BLOCK", 4)
  inputs = arrays(length)
  expected = value_and_gradients(functools.partial(jax.nn.dot_product_attention, is_causal=True), inputs)
  found = value_and_gradients(attention.causal_attention, inputs)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=5e-6), found, expected)


def test_a_sequence_spread_over_devices_in_stripes_has_the_attention_and_gradients_of_the_whole(monkeypatch):
  monkeypatch.setattr(attention, "_BLOCK", 2)
  inputs = arrays(12)
  order = striped(jnp.arange(12)[None], 2)[0]
  expected = value_and_gradients(attention.causal_attention, inputs)
  mesh = jax.make_mesh((2, 2), ("fsdp", "context"), axis_types=(AxisType.Explicit,) * 2)
  place = NamedSharding(mesh, P("fsdp", "context"))
  with jax.set_mesh(mesh):
    value, slopes = value_and_gradients(
      attention.causal_attention, [jax.device_put(a[:, order], place) for a in inputs]
    )
  np.testing.assert_allclose(value, expected[0], rtol=1e-5)
  for slope, a in zip(slopes, expected[1], strict=True):
    np.testing.assert_allclose(slope, a[:, order], rtol=1e-5, atol=5e-6)


def test_the_scores_of_a_spread_sequence_are_spread_too():
  def temporary(parts):
    mesh = jax.make_mesh((parts,), ("context",), axis_types=(AxisType.Explicit,))
    place = NamedSharding(mesh, P(None, "context" if parts > 1 else None))
    inputs = [jax.ShapeDtypeStruct((1, 2048, heads, 8), jnp.float32, sharding=place) for heads in (4, 1, 1)]
    program = Program(jax.grad(lambda *a: jnp.sum(attention.causal_attention(*a)), (0, 1, 2)))
    with jax.set_mesh(mesh):
      return program.lower(*inputs).compile().memory_analysis().temp_size_in_bytes

  # A quarter of them, and all the keys and values.
  assert temporary(4) < temporary(1) / 2.5


def test_no_more_than_eight_blocks_however_long(monkeypatch):
  monkeypatch.setattr(attention, "_BLOCK", 1)
  starts = []
  block = attention._block
  monkeypatch.setattr(attention, "_block", lambda start, *rest: starts.append(start) or block(start, *rest))
  jax.eval_shape(attention.causal_attention, *arrays(20))
  assert starts == [0, 3, 6, 9, 12, 15, 18]


def test_padding_on_the_left_is_not_seen():
  q, k, v = arrays(9)
  first_B = jnp.array([0, 4])
  found = jax.jit(attention.causal_attention)(q, k, v, first_B)
  alone = attention.causal_attention(q[1:, 4:], k[1:, 4:], v[1:, 4:])
  np.testing.assert_allclose(found[1, 4:], alone[0], atol=2e-6)
  assert jnp.isfinite(found).all()


@pytest.mark.parametrize("new", [1, 3])
def test_queries_over_a_cache_see_what_the_last_of_a_sequence_see(new):
  q, k, v = arrays(7)
  first_B = jnp.array([0, 2])
  expected = attention.causal_attention(q, k, v, first_B)[:, -new:]
  # Slots beyond the last written one hold what was there before.
  k_BSKH, v_BSKH = (jnp.pad(a, [(0, 0), (0, 3), (0, 0), (0, 0)], constant_values=9.0) for a in (k, v))
  k_RHS = k_BSKH.transpose(0, 2, 3, 1).reshape(-1, k.shape[-1], 10)
  v_RSH = v_BSKH.transpose(0, 2, 1, 3).reshape(-1, 10, v.shape[-1])
  found = attention.cached_attention(q[:, -new:], k_RHS, v_RSH, first_B, jnp.int32(7 - new))
  np.testing.assert_allclose(found, expected, atol=2e-6)


def test_bfloat16_stays_bfloat16():
  assert attention.causal_attention(*(a.astype(jnp.bfloat16) for a in arrays(5))).dtype == jnp.bfloat16
