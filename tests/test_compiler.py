"""Programs ask the devices for their options when they first run, and run where there are none to ask for."""

import subprocess
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxchop import compiler


@pytest.fixture(autouse=True)
def asked_anew():
  compiler._known.cache_clear()
  yield
  compiler._known.cache_clear()


def products(a_ND, b_DM):
  return a_ND @ b_DM


def rounding(compiled) -> float:
  """Returns the largest difference of a product from float64's."""
  a_ND, b_DM = (np.random.default_rng(seed).normal(size=(512, 512)).astype(np.float32) for seed in range(2))
  return abs(np.asarray(compiled(a_ND, b_DM)) - a_ND.astype(np.float64) @ b_DM).max()


def test_a_program_on_a_cpu_rounds_no_coarser_than_plain_jit():
  assert rounding(compiler.Program(products)) <= rounding(jax.jit(products))


def test_the_options_are_for_a_callers_own_jit_too():
  own = jax.jit(products, compiler_options=compiler.compiler_options())
  assert rounding(own) == rounding(compiler.Program(products))


def test_other_devices_get_no_options(monkeypatch):
  monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
  assert compiler.compiler_options() == {}


@pytest.mark.parametrize("kind", ["v4", "v5 lite", "v5", "v6 lite"])
def test_each_kind_of_tpu_has_its_own_beside_what_all_have(kind, monkeypatch):
  monkeypatch.setattr(compiler, "_known", lambda *_: True)
  name = f"TPU {kind}"
  found = compiler.compiler_options(device=SimpleNamespace(platform="tpu", device_kind=name))
  assert found == {**compiler._SMALLER, **compiler._GATHERED, **compiler._BY_KIND.get(name, {})}
  assert (found.keys() >= compiler._BY_SPARSE_CORE.keys()) == (kind in ("v5", "v6 lite"))
  assert found.get("xla_tpu_scoped_vmem_limit_kib") == {"v5 lite": "28672", "v5": "49152", "v6 lite": "49152"}.get(kind)


def test_a_compiler_without_the_choice_gets_none(monkeypatch):
  monkeypatch.setattr(compiler, "_EXACT", {"xla_cpu_of_another_year": ""})
  assert "xla_cpu_of_another_year" not in compiler.compiler_options()
  assert compiler.Program(products)(jnp.ones((1, 2)), jnp.ones((2, 1))) == 2


def test_several_devices_of_a_mesh_run_their_collectives_in_one_order(monkeypatch):
  with jax.set_mesh(jax.make_mesh((4,), ("data",))):
    assert compiler.compiler_options().keys() == compiler._ORDERED.keys()
    assert compiler.product_library() == "XLA's default library"
    monkeypatch.setattr(jax, "local_device_count", lambda: 1)
    assert compiler.compiler_options() == {}


def test_a_program_asks_again_where_another_mesh_is_set():
  program = compiler.Program(products)
  before = rounding(program)
  with jax.set_mesh(jax.make_mesh((4,), ("data",))):
    assert rounding(program) == rounding(jax.jit(products, compiler_options=compiler._ORDERED))
  assert rounding(program) == before


def test_the_rest_is_jit():
  double = compiler.Program(lambda x, *, times: x * 2**times, static_argnames="times", donate_argnums=0)
  x = jnp.ones(3)
  assert double(x, times=2).tolist() == [4, 4, 4]
  assert x.is_deleted()
  whole = compiler.Program(products).lower(*[jax.ShapeDtypeStruct((2, 2), jnp.float32)] * 2).compile()
  assert whole(jnp.eye(2), jnp.eye(2)).tolist() == [[1, 0], [0, 1]]
  assert compiler.Program(products).__name__ == "products"


def test_defining_programs_starts_no_device():
  code = (
    "import jaxchop.recover.loop, jaxchop.prune.score, jaxchop.model.generate\n"
    "from jax._src import xla_bridge\n"
    "assert not xla_bridge.backends_are_initialized()"
  )
  subprocess.run([sys.executable, "-c", code], check=True)
