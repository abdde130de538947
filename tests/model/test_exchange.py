"""A table cut along its columns is looked up without being gathered; its gradient is made where its parts lie."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from jaxchop.model.exchange import all_rows, to_columns, to_rows
from jaxchop.model.placement import lookup

ROWS, WIDTH = 32, 16
# Sizes of data, fsdp and context; how the ids lie.
MESHES = [((1, 4, 1), P("fsdp", None)), ((2, 2, 1), P(("data", "fsdp"), None)), ((1, 2, 2), P("fsdp", "context"))]


@pytest.fixture(params=MESHES, ids=["fsdp", "data and fsdp", "fsdp and context"])
def spread(request):
  shape, rows = request.param
  mesh = jax.make_mesh(shape, ("data", "fsdp", "context"), axis_types=(AxisType.Explicit,) * 3)
  with jax.set_mesh(mesh):
    yield rows, tuple(name for name in ("fsdp", "context") if mesh.shape[name] > 1)


def test_there_and_back_again(spread):
  rows, names = spread
  ids_BT = np.arange(32).reshape(8, 4)
  x_BTD = (ids_BT[..., None] * WIDTH + np.arange(WIDTH)).astype(np.float32)
  there, everywhere = P(*rows, None), ("data", "fsdp", "context")

  def exchanged(x_BTD, ids_BT):
    own_BTE = to_columns(x_BTD, names, rows)
    # A device's columns are of the very tokens whose ids it is told.
    fits = jnp.all(own_BTE // WIDTH == all_rows(ids_BT, names, rows)[..., None])
    return to_rows(own_BTE, names, rows), fits[None]

  local = jax.shard_map(exchanged, in_specs=(there, rows), out_specs=(there, P(everywhere)), check_vma=False)
  found, fits = local(jax.device_put(x_BTD, there), jax.device_put(ids_BT, rows))
  assert np.array_equal(found, x_BTD) and fits.all()


def test_no_table_is_gathered_and_no_gradient_of_one_is_summed_up(spread):
  rows, names = spread
  table_VD = jax.device_put(jax.random.normal(jax.random.key(0), (ROWS, WIDTH)), P(None, names))
  ids_BT = jax.device_put(jax.random.randint(jax.random.key(1), (8, 4), 0, ROWS), rows)
  program = jax.jit(jax.value_and_grad(lambda table, ids: jnp.sum(lookup(table, ids) ** 2)))
  text = program.lower(table_VD, ids_BT).compile().as_text()
  assert " all-to-all(" in text and f"f32[{ROWS},{WIDTH}]" not in text
  value, grad = program(table_VD, ids_BT)
  whole_VD, whole_BT = np.asarray(table_VD), np.asarray(ids_BT)
  np.testing.assert_allclose(value, np.sum(whole_VD[whole_BT] ** 2), rtol=1e-5)
  np.testing.assert_allclose(grad, 2 * whole_VD * np.bincount(whole_BT.ravel(), minlength=ROWS)[:, None], rtol=1e-5)
  assert grad.sharding.spec == P(None, names)


def test_a_word_that_comes_a_thousand_times_is_summed_up_exactly_in_bfloat16(spread):
  rows, names = spread
  table_VD = jax.device_put(jnp.ones((ROWS, WIDTH), jnp.bfloat16), P(None, names))
  ids_BT = jax.device_put(jnp.full((8, 128), 3), rows)
  grad = jax.jit(jax.grad(lambda table: jnp.sum(lookup(table, ids_BT).astype(jnp.float32))))(table_VD)
  # Added one by one in bfloat16, ones come to 256.
  assert np.unique(np.asarray(grad)[3].astype(np.float32)) == 1024
