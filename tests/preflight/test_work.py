"""Matrix products are counted as a program runs them."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, PartitionSpec

from jaxchop.preflight.work import product_flops


def flops(function, *arguments) -> int:
  return product_flops(jax.make_jaxpr(function)(*arguments).jaxpr)


A = jnp.zeros((4, 8)), jnp.zeros((8, 8))


def chain(x, w, wrap=lambda f: f):
  return jax.lax.scan(lambda x, _: (jnp.tanh(wrap(lambda x: jnp.tanh(x @ w) @ w)(x)), None), x, length=3)[0].sum()


def test_a_product_counts_a_multiplication_and_an_addition_and_a_loop_its_turns():
  assert flops(jnp.matmul, *A) == 2 * 4 * 8 * 8
  assert flops(chain, *A) == 6 * 2 * 4 * 8 * 8


def test_what_is_computed_again_counts_again():
  plain, again = (flops(jax.grad(lambda x, w: chain(x, w, wrap), (0, 1)), *A) for wrap in (lambda f: f, jax.checkpoint))  # noqa: B023
  # The last product of a layer is not needed again.
  assert plain == 3 * flops(chain, *A)
  assert again == plain + flops(chain, *A) // 2


def test_each_device_of_a_mesh_counts_and_of_branches_the_dearest():
  mesh = jax.make_mesh((4,), ("x",), axis_types=(AxisType.Auto,))
  spread = jax.shard_map(
    jnp.matmul, mesh=mesh, in_specs=(PartitionSpec("x"), PartitionSpec()), out_specs=PartitionSpec("x")
  )
  assert flops(spread, *A) == flops(jnp.matmul, *A)
  assert flops(lambda x, w: jax.lax.cond(True, lambda: x @ w, lambda: x), *A) == flops(jnp.matmul, *A)


@pytest.mark.parametrize("remat", ["none", "dots", "full"])
def test_a_step_takes_at_least_what_its_model_needs(remat):
  from tiny_run import CONFIG, settings

  from jaxchop.hub.architectures import Shape
  from jaxchop.preflight.shapes import Training, plan

  planned = plan(Training(student=Shape(CONFIG, 3), config=settings(remat=remat)), jax.devices()[:1])
  counted = product_flops(planned.traced().jaxpr.jaxpr) / planned.model_flops
  assert {"none": 1.0, "dots": 1.0, "full": 1.15}[remat] < counted < {"none": 1.4, "dots": 1.4, "full": 1.7}[remat]
