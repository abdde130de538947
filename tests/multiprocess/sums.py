"""One of two processes, of four CPU devices each, that sum up, scatter and exchange arrays of which all is known.

`sums.py INDEX PORT` prints how many of its devices' parts were wrong. Sums are of 8 MiB, in groups of two: by Gloo's
own scattering some of these came out wrong, and smaller ones right. Exchanged are 4 MiB between any two devices.
"""

import sys

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxchop.compiler import Program
from jaxchop.model.exchange import to_columns
from jaxchop.model.scatter import scattered

GROUPS, TURNS, SIZE = 4, 20, 1 << 22
TOKENS, WIDTH = 64, 1 << 20


def whole(turn: int, group: int, device: int) -> np.ndarray:
  """What a device adds to the sum of its group, in whole numbers: their sum is the same in any order."""
  drawn = np.random.default_rng([turn, group, device]).integers(0, 100, SIZE)
  return drawn.astype(np.float32)


def wrong_sums() -> int:
  """Returns how many parts of sums this process has wrong."""
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
  return wrong


def wrong_columns() -> int:
  """Returns how many devices of this process have other columns than their own, of all devices' tokens."""
  mesh = jax.make_mesh((8,), ("fsdp",), axis_types=(AxisType.Explicit,))
  rows, wrong = P("fsdp", None), 0
  with jax.set_mesh(mesh):

    def exchanged(x_MD: jax.Array) -> jax.Array:
      turned = lambda x: to_columns(x, ("fsdp",), P("fsdp"))  # noqa: E731
      return jax.shard_map(turned, in_specs=rows, out_specs=P(None, "fsdp"), check_vma=False)(x_MD)

    program = Program(exchanged)
    for turn in range(TURNS // 4):
      x_MD = np.arange(TOKENS * WIDTH, dtype=np.int32).reshape(TOKENS, WIDTH) ^ turn
      given = jax.make_array_from_callback(x_MD.shape, NamedSharding(mesh, rows), lambda at: x_MD[at])  # noqa: B023
      wrong += sum(not np.array_equal(part.data, x_MD[part.index]) for part in program(given).addressable_shards)
  return wrong


def main(index: int, port: int) -> None:
  jax.config.update("jax_num_cpu_devices", 4)
  jax.distributed.initialize(f"localhost:{port}", 2, index)
  print(f"{wrong_sums()} sums and {wrong_columns()} exchanges wrong")


if __name__ == "__main__":
  main(int(sys.argv[1]), int(sys.argv[2]))
