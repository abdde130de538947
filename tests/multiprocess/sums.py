"""One of two processes, of four CPU devices each, that sum up and scatter arrays whose sums are known.

`sums.py INDEX PORT` prints how many of its devices' parts were wrong. They are of 8 MiB, in groups of two: by Gloo's
own scattering some of these came out wrong, and smaller ones right.
"""

import sys

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxchop.compiler import Program
from jaxchop.model.scatter import scattered

GROUPS, TURNS, SIZE = 4, 20, 1 << 22


def whole(turn: int, group: int, device: int) -> np.ndarray:
  """What a device adds to the sum of its group, in whole numbers: their sum is the same in any order."""
  drawn = np.random.default_rng([turn, group, device]).integers(0, 100, SIZE)
  return drawn.astype(np.float32)


def main(index: int, port: int) -> None:
  jax.config.update("jax_num_cpu_devices", 4)
  jax.distributed.initialize(f"localhost:{port}", 2, index)
  mesh = jax.make_mesh((GROUPS, 2), ("tensor", "fsdp"), axis_types=(AxisType.Explicit,) * 2)
  spec, wrong = P("tensor", "fsdp", None), 0
  with jax.set_mesh(mesh):

    def summed(a_GDN: jax.Array) -> jax.Array:
      part = lambda a: scattered(a[0, 0], P("fsdp"), P("fsdp", None))[None, None]  # noqa: E731
      return jax.shard_map(part, in_specs=spec, out_specs=spec, check_vma=False)(a_GDN)

    program = Program(summed)
    for turn in range(TURNS):
      of = lambda at: whole(turn, at[0].start, at[1].start)[None, None]  # noqa: B023, E731
      given = jax.make_array_from_callback((GROUPS, 2, SIZE), NamedSharding(mesh, spec), of)
      for part in program(given).addressable_shards:
        group, device = part.index[0].start, part.index[1].start
        expected = whole(turn, group, 0) + whole(turn, group, 1)
        wrong += not np.array_equal(np.asarray(part.data)[0, 0], np.split(expected, 2)[device])
  print(f"{wrong} wrong")


if __name__ == "__main__":
  main(int(sys.argv[1]), int(sys.argv[2]))
