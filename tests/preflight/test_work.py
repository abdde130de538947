"""Matrix products are counted as a program runs them."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, PartitionSpec

from jaxchop.model.splash import splash
from jaxchop.preflight.work import kernel_flops, product_flops


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


def test_of_a_kernel_for_causal_attention_the_blocks_that_run_count():
  B, T, N, H, block = 2, 1024, 4, 64, 512
  a_BTNH = jax.ShapeDtypeStruct((B, T, N, H), jnp.bfloat16)
  attend = functools.partial(splash, block=block, name="")
  jaxpr = jax.make_jaxpr(attend)(a_BTNH, a_BTNH, a_BTNH).jaxpr
  # Scores and values of three of four blocks.
  assert product_flops(jaxpr) == kernel_flops(jaxpr) == 2 * 2 * B * N * H * 3 * block**2
  gradient = jax.make_jaxpr(jax.grad(lambda *a: attend(*a).sum(), (0, 1, 2)))(*[jnp.zeros((B, T, N, H))] * 3).jaxpr
  # Seven products more: of the queries' gradient three, of that of keys and values four.
  assert kernel_flops(gradient) == (2 + 3 + 4) * 2 * B * N * H * 3 * block**2


@pytest.mark.parametrize("remat", ["none", "dots", "full"])
def test_a_step_takes_at_least_what_its_model_needs(remat):
  from tiny_run import CONFIG, settings

  from jaxchop.hub.architectures import Shape
  from jaxchop.preflight.shapes import Training, plan

  planned = plan(Training(student=Shape(CONFIG, 3), config=settings(remat=remat)), jax.devices()[:1])
  counted = product_flops(planned.traced().jaxpr.jaxpr) / planned.model_flops
  assert {"none": 1.0, "dots": 1.0, "full": 1.15}[remat] < counted < {"none": 1.4, "dots": 1.4, "full": 1.7}[remat]
