"""Gradients of what is gathered where it is used: the same on every mesh, and each part goes to its own device."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from jaxchop.model import scatter
from jaxchop.model.placement import lookup, product

AXES = ("data", "fsdp", "context", "tensor")
MESHES = [(1, 4, 1, 1), (2, 2, 1, 1), (1, 2, 2, 1), (1, 2, 1, 2), (4, 1, 1, 1)]


def wide(mesh, *names):
  return tuple(name for name in names if mesh.shape[name] > 1) or None


def gradients(shape):
  """Returns the gradients without a mesh, on one, the compiled text of the latter, and where its weights lie."""

  def summed(table_VD, up_DF, down_FD, ids_BT):
    return jnp.sin(product(jnp.tanh(product(lookup(table_VD, ids_BT), up_DF)), down_FD)).sum()

  keys = jax.random.split(jax.random.key(0), 4)
  weights = [jax.random.normal(key, size) for key, size in zip(keys, [(12, 8), (8, 16), (16, 8)], strict=False)]
  ids_BT = jax.random.randint(keys[3], (4, 6), 0, 12)
  slopes = jax.jit(jax.grad(summed, (0, 1, 2)))
  expected = slopes(*weights, ids_BT)
  mesh = jax.make_mesh(shape, AXES, axis_types=(AxisType.Explicit,) * 4)
  parts, tensor = wide(mesh, "fsdp", "context"), wide(mesh, "tensor")
  specs = P(tensor, parts), P(parts, tensor), P(tensor, parts), P(wide(mesh, "data", "fsdp"), wide(mesh, "context"))
  with jax.set_mesh(mesh):
    moved = [jax.device_put(a, spec) for a, spec in zip((*weights, ids_BT), specs, strict=True)]
    program = slopes.lower(*moved).compile()
    return expected, program(*moved), program.as_text(), specs[:3]


# Parts of the two stages are 4 and 2 columns wide, narrower than some of these tiles. To fill one of 128, rows lack.
@pytest.mark.parametrize(
  ("cpu", "flat", "tile"), [(1, 0, 128), (0, 0, 128), (0, 1, 128), (0, 1, 8), (0, 1, 4), (0, 1, 1)]
)
@pytest.mark.parametrize("shape", MESHES)
def test_each_device_has_its_part_of_the_sum(shape, cpu, flat, tile, monkeypatch):
  monkeypatch.setattr(scatter, "_TILE", tile)
  monkeypatch.setattr(scatter, "on_flat_torus", lambda: flat)
  monkeypatch.setattr(scatter, "on_cpu", lambda: cpu)
  expected, found, text, specs = gradients(shape)
  for a, b, spec in zip(found, expected, specs, strict=True):
    assert a.sharding.spec == spec
    np.testing.assert_allclose(np.asarray(a), b, rtol=1e-5, atol=1e-5)
  if shape == (1, 4, 1, 1):
    # Whole sums on CPUs; elsewhere parts, one after the other along the two axes of a torus. The table has none of it.
    assert text.count(" reduce-scatter(") == (0 if cpu else 2 * (1 + flat)) and (" all-reduce(" in text) == cpu


@pytest.mark.parametrize("count", [1, 2, 8, 16, 24, 64])
def test_stage_by_stage_each_device_comes_to_its_own_part_summed_over_all(count):
  part, summed = {n: range(count) for n in range(count)}, {n: {n} for n in range(count)}
  for groups in scatter.two_stages(count):
    for group in groups:
      assert len({part[n] for n in group}) == 1
      together = set().union(*(summed[n] for n in group))
      for place, n in enumerate(group):
        size = len(part[n]) // len(group)
        part[n], summed[n] = part[n][place * size : (place + 1) * size], together
  assert all(list(part[n]) == [n] and summed[n] == set(range(count)) for n in range(count))


def test_the_shorter_axis_of_a_torus_comes_first():
  assert scatter.two_stages(8) == ([[0, 4], [1, 5], [2, 6], [3, 7]], [[0, 1, 2, 3], [4, 5, 6, 7]])


def test_what_gets_no_gradient_is_not_summed_up():
  mesh = jax.make_mesh((4,), ("fsdp",), axis_types=(AxisType.Explicit,))
  with jax.set_mesh(mesh):
    x, w = (jax.device_put(jnp.ones((8, 8)), P("fsdp")) for _ in range(2))
    of_x = jax.jit(jax.grad(lambda x, w: product(x, w).sum())).lower(x, w).as_text()
    of_w = jax.jit(jax.grad(lambda w, x: product(x, w).sum())).lower(w, x).as_text()
  assert "reduce_scatter" not in of_x and of_w.count("stablehlo.dot_general") == 1
