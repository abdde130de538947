"""Heads are the projection's outputs in order, on every kind of device, and join undoes split."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from jaxchop.model import heads
from jaxchop.model.heads import join_heads, split_heads


@pytest.mark.parametrize("length", [1, 12, 16])
@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_heads_are_the_outputs_in_order_and_joining_undoes_it(monkeypatch, platform, length):
  monkeypatch.setattr(heads, "target", lambda: SimpleNamespace(platform=platform))
  y_BTO = jax.random.normal(jax.random.key(0), (2, length, 12))
  y_BTNH, pull = jax.vjp(lambda y: split_heads(y, 4), y_BTO)
  np.testing.assert_array_equal(y_BTNH, np.asarray(y_BTO).reshape(2, length, 3, 4))
  np.testing.assert_array_equal(join_heads(y_BTNH), y_BTO)
  np.testing.assert_array_equal(pull(y_BTNH)[0], y_BTO)


@pytest.mark.parametrize(
  "spec", [P("rows", None, "columns"), P(None, "rows", "columns"), P(("rows", "columns"), None, None)]
)
def test_so_they_are_where_rows_positions_or_heads_are_spread(monkeypatch, spec):
  monkeypatch.setattr(heads, "target", lambda: SimpleNamespace(platform="tpu"))
  mesh = jax.make_mesh((2, 2), ("rows", "columns"), axis_types=(AxisType.Explicit,) * 2)
  y_BTO = jnp.arange(4 * 16 * 24, dtype=jnp.float32).reshape(4, 16, 24)
  with jax.set_mesh(mesh):
    found_BTNH = jax.jit(lambda y: split_heads(y, 4))(spread := jax.device_put(y_BTO, spec))
    again_BTO = jax.jit(join_heads)(found_BTNH)
  np.testing.assert_array_equal(found_BTNH, np.asarray(y_BTO).reshape(4, 16, 6, 4))
  np.testing.assert_array_equal(again_BTO, y_BTO)
  assert again_BTO.sharding == spread.sharding
