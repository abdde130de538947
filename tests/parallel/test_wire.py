"""How weights are gathered and gradients scattered over the chips of a slice, by the TPU compiler: not as whole sums.

No TPU is needed for it, only its library.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jaxchop.parallel.topology import environment


def sent(topology: str, plain: bool) -> None:
  """Prints a chip's bytes by kind of collective for gathering a weight and scattering its gradient."""
  from collections import Counter

  import jax
  import jax.numpy as jnp
  from jax.sharding import NamedSharding, PartitionSpec

  from jaxchop.compiler import compiler_options
  from jaxchop.model.scatter import scattered
  from jaxchop.parallel.hlo import read_cost
  from jaxchop.parallel.mesh import AXES, arranged
  from jaxchop.parallel.topology import devices_of

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
  print(json.dumps(found))


def told(topology: str, *, plain: bool = False) -> dict[str, int]:
  paths = os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])])
  command = [sys.executable, __file__, topology, *(["plain"] if plain else [])]
  done = subprocess.run(
    command, env={**environment(), "PYTHONPATH": paths}, capture_output=True, text=True, timeout=300, check=False
  )
  assert done.returncode == 0, done.stderr[-2000:]
  return json.loads(done.stdout.splitlines()[-1])


# On 256 chips parts are narrower than a tile.
@pytest.mark.parametrize(
  ("topology", "chips"), [("v5e:4x4", 16), ("v5e:16x16", 256), ("v6e:4x4", 16), ("v5p:2x2x4", 16), ("v5p:4x4x4", 64)]
)
def test_weights_are_gathered_and_gradients_scattered(topology, chips):
  each = 4096 * 4096 * 2 * (chips - 1) // chips
  assert told(topology) == {"all-gather": each, "reduce-scatter": each}


def test_that_needs_our_options():
  assert told("v5p:4x4x4", plain=True).keys() == {"all-reduce"}


def test_a_v4_is_one_device_a_chip_and_sums_up_whole_gradients():
  each = 4096 * 4096 * 2 * 15 // 16
  assert told("v4:2x2x4") == {"all-gather": each, "all-reduce": 2 * each}


if __name__ == "__main__":
  sent(sys.argv[1], "plain" in sys.argv[2:])
