"""The TPU's attention kernel, interpreted on a CPU, is the attention in blocks: values and gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxchop.model import attention
from jaxchop.model.kernel import Kernel
from jaxchop.model.placement import striped
from jaxchop.model.splash import splash


def arrays(length, heads=2, kv_heads=1, rows=1, width=8):
  keys = jax.random.split(jax.random.key(length), 3)
  shapes = [(rows, length, count, width) for count in (heads, kv_heads, kv_heads)]
  return [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]


def value_and_gradients(attend, inputs):
  return jax.jit(jax.value_and_grad(lambda *a: jnp.sum(jnp.sin(attend(*a))), (0, 1, 2)))(*inputs)


def assert_close(found, expected):
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), found, expected)


@pytest.fixture
def interpreted(monkeypatch):
  """Has the devices here take splash attention, as TPUs do."""
  monkeypatch.setattr(attention, "chosen", lambda *_, **__: Kernel("splash", 128))
  monkeypatch.setattr(attention, "splash", functools.partial(splash, interpret=True))


def plain(*inputs):
  return attention._attended(*inputs[:3], *(inputs[3:] or (None, None)))


# 200 positions fill the second block of 128 partly; documents end inside of blocks.
@pytest.mark.parametrize("parts", [None, "segments", "padding"])
def test_any_length_with_and_without_parts_has_the_values_and_gradients_of_the_blocks(parts, interpreted):
  inputs = arrays(200)
  segments_BT = jnp.searchsorted(jnp.array([50, 150]), jnp.arange(200), side="right")[None]
  marks = {None: (None, None), "segments": (None, segments_BT), "padding": (jnp.array([140]), None)}[parts]

  def seen(attend):
    # Nobody looks at what padding attends to.
    return lambda *a: attend(*a, *marks)[:, 140 if parts == "padding" else 0 :]

  assert_close(value_and_gradients(seen(attention.causal_attention), inputs), value_and_gradients(seen(plain), inputs))


def test_blocks_of_several_sizes_agree():
  inputs = arrays(256)
  one, other = (
    jax.jit(functools.partial(splash, block=block, name="", interpret=True))(*inputs) for block in (128, 512)
  )
  np.testing.assert_allclose(one, other, atol=2e-6)


@pytest.mark.parametrize("axes", [("fsdp", "tensor"), ("fsdp", "context")])
def test_spread_over_devices_it_is_the_attention_of_the_whole(axes, interpreted):
  inputs = arrays(256, heads=4, kv_heads=2, rows=2)
  segments_BT = jnp.repeat(jnp.array([[1, 2], [1, 1]]), 128, 1)
  expected = value_and_gradients(lambda *a: plain(*a, None, segments_BT), inputs)
  mesh = jax.make_mesh((2, 2), axes, axis_types=(AxisType.Explicit,) * 2)
  spread = axes[1] == "context"
  order = striped(jnp.arange(256)[None], 2)[0] if spread else jnp.arange(256)
  place = NamedSharding(mesh, P(*axes) if spread else P("fsdp", None, "tensor"))
  with jax.set_mesh(mesh):
    segments = jax.device_put(segments_BT, NamedSharding(mesh, P("fsdp")))
    moved = [jax.device_put(a[:, order], place) for a in inputs]
    value, slopes = value_and_gradients(lambda *a: attention.causal_attention(*a, None, segments), moved)
  np.testing.assert_allclose(value, expected[0], rtol=1e-5)
  for slope, a in zip(slopes, expected[1], strict=True):
    np.testing.assert_allclose(slope, a[:, order], rtol=1e-5, atol=1e-5)
