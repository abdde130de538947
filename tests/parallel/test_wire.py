"""How weights are gathered and gradients scattered over the chips of a slice, by the TPU compiler: not as whole sums.

No TPU is needed for it, only its library.
"""

from collections import Counter

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxchop.compiler import compiler_options
from jaxchop.model.scatter import scattered
from jaxchop.parallel.hlo import read_cost
from jaxchop.parallel.mesh import AXES, arranged
from jaxchop.parallel.topology import devices_of
from jaxchop.preflight.alone import alone

pytestmark = pytest.mark.usefixtures("found_alone")


def sent(topology: str, plain: bool) -> dict[str, int]:
  """Returns a chip's bytes by kind of collective for gathering a weight and scattering its gradient."""
  devices = devices_of(topology)
  sizes = dict.fromkeys(AXES, 1) | {"fsdp": len(devices)}
  mesh = jax.sharding.Mesh(arranged(sizes, devices), AXES, axis_types=(jax.sharding.AxisType.Explicit,) * len(AXES))
  spec, rows = PartitionSpec("fsdp", None), PartitionSpec("fsdp", None)

  def layer(w_IO, x_MI):
    whole_IO = jax.lax.all_gather(w_IO, "fsdp", axis=0, tiled=True)
    y_MO = x_MI @ whole_IO
    return scattered(x_MI.T @ y_MO, spec, rows), y_MO

  with jax.set_mesh(mesh):
    shapes = [
      jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=NamedSharding(mesh, spec))
      for shape in ((4096, 4096), (512 * len(devices), 4096))
    ]
    step = jax.shard_map(layer, in_specs=(spec, rows), out_specs=(spec, rows), check_vma=False)
    options = {} if plain else compiler_options(device=devices[0])
    text = jax.jit(step, compiler_options=options).lower(*shapes).compile().as_text()
  found: Counter[str] = Counter()
  for one in read_cost(text, len(devices)).collectives:
    found[one.kind] += one.bytes
  return dict(found)


# On 256 chips parts are narrower than a tile.
@pytest.mark.parametrize(
  ("topology", "chips"), [("v5e:4x4", 16), ("v5e:16x16", 256), ("v6e:4x4", 16), ("v5p:2x2x4", 16), ("v5p:4x4x4", 64)]
)
def test_weights_are_gathered_and_gradients_scattered(topology, chips):
  each = 4096 * 4096 * 2 * (chips - 1) // chips
  assert alone(sent, topology, False) == {"all-gather": each, "reduce-scatter": each}


def test_that_needs_our_options():
  assert alone(sent, "v5p:4x4x4", True).keys() == {"all-reduce"}


def test_a_v4_is_one_device_a_chip_and_sums_up_whole_gradients():
  each = 4096 * 4096 * 2 * 15 // 16
  assert alone(sent, "v4:2x2x4", False) == {"all-gather": each, "all-reduce": 2 * each}
