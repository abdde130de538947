"""Heads are the projection's outputs in order, on every kind of device, and products with them those of rows."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
from tiny import tiny_llama

from jaxchop.model import heads
from jaxchop.model.heads import join_heads, product_of_heads, product_to_heads, split_heads

# Of (batch, positions, inputs), of a kernel to heads and of one behind them.
PLACES = [
  (P("rows", None, None), P("rows", "columns"), P("columns", "rows")),
  (P(None, "rows", None), P("rows", "columns"), P("columns", "rows")),
  (P(("rows", "columns"), None, None), P(("rows", "columns"), None), P(None, ("rows", "columns"))),
]


@pytest.fixture(params=["cpu", "tpu"])
def platform(request, monkeypatch):
  monkeypatch.setattr(heads, "target", lambda: SimpleNamespace(platform=request.param))
  return request.param


@pytest.mark.parametrize("length", [1, 12, 16])
def test_heads_are_the_outputs_in_order_and_joining_undoes_it(platform, length):
  y_BTO = jax.random.normal(jax.random.key(0), (2, length, 12))
  y_BTNH, pull = jax.vjp(lambda y: split_heads(y, 4), y_BTO)
  np.testing.assert_array_equal(y_BTNH, np.asarray(y_BTO).reshape(2, length, 3, 4))
  np.testing.assert_array_equal(join_heads(y_BTNH), y_BTO)
  np.testing.assert_array_equal(pull(y_BTNH)[0], y_BTO)


def _arrays():
  keys = jax.random.split(jax.random.key(1), 3)
  return [jax.random.normal(key, size) for key, size in zip(keys, [(4, 16, 8), (8, 24), (24, 8)], strict=True)]


def _through(x_BTI, to_IO, of_IO):
  return jnp.sin(product_of_heads(jnp.tanh(product_to_heads(x_BTI, to_IO, 4)), of_IO)).sum()


def _wanted():
  def plain(x_BTI, to_IO, of_IO):
    return jnp.sin(jnp.tanh(x_BTI @ to_IO) @ of_IO).sum()

  return jax.jit(jax.value_and_grad(plain, (0, 1, 2)))(*_arrays())


def test_products_with_heads_are_those_of_rows_and_so_are_their_gradients(platform):
  for found, wanted in zip(
    jax.tree.leaves(jax.jit(jax.value_and_grad(_through, (0, 1, 2)))(*_arrays())),
    jax.tree.leaves(_wanted()),
    strict=True,
  ):
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("places", PLACES)
def test_so_they_are_where_rows_positions_or_heads_are_spread(platform, places):
  mesh = jax.make_mesh((2, 2), ("rows", "columns"), axis_types=(AxisType.Explicit,) * 2)
  with jax.set_mesh(mesh):
    arrays = [jax.device_put(a, place) for a, place in zip(_arrays(), places, strict=True)]
    value, grads = jax.jit(jax.value_and_grad(_through, (0, 1, 2)))(*arrays)
  np.testing.assert_allclose(value, _wanted()[0], rtol=1e-5)
  for found, wanted, place in zip(grads, _wanted()[1], places, strict=True):
    np.testing.assert_allclose(np.asarray(found), wanted, rtol=1e-5, atol=1e-5)
    assert found.sharding.spec == place


def test_what_gets_no_gradient_is_not_kept_for_one(platform):
  x_BTI, to_IO, of_IO = _arrays()
  for argument, dots in ((0, 4), (1, 4), (2, 3)):
    program = jax.make_jaxpr(jax.grad(_through, argument))(x_BTI, to_IO, of_IO)
    assert str(program).count("dot_general") == dots


def test_a_model_is_the_same_with_both(monkeypatch):
  model, ids_BT = tiny_llama(layers=2), jnp.arange(32).reshape(2, 16)
  wanted = model(ids_BT)
  monkeypatch.setattr(heads, "target", lambda: SimpleNamespace(platform="tpu"))
  np.testing.assert_allclose(model(ids_BT), wanted, rtol=1e-5, atol=1e-5)
