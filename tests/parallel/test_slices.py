"""What the TPU compiler makes of the training step on several slices: no TPU is needed for it, only its library."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jaxchop.parallel.topology import environment

pytestmark = pytest.mark.slow


def compiled_step() -> None:
  """Prints what the step of a small model sends between two slices of four chips; run in a process of its own."""
  import math
  import re

  import jax
  import jax.numpy as jnp
  from jax.experimental import topologies

  from jaxchop.data.batch import Batch
  from jaxchop.model.config import LlamaConfig
  from jaxchop.model.tree import abstract
  from jaxchop.parallel.mesh import make_mesh
  from jaxchop.parallel.sharding import bytes_per_device, concrete, planned, rows
  from jaxchop.recover.step import init_optimizer, make_step
  from jaxchop.training import MeshConfig, RecoverConfig

  sizes = {"vocab_size": 1024, "width": 256, "mlp_width": 512, "heads": 2, "kv_heads": 2, "head_dim": 128}
  shape = LlamaConfig(**sizes, norm_eps=1e-5, max_positions=256)
  config = RecoverConfig(batch_size=8, seq_len=128, mesh=MeshConfig(data=2, fsdp=4))
  devices = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2", num_slices=2).devices
  mesh = make_mesh(config.mesh, shape, config.batch_size, config.seq_len, devices)
  assert mesh is not None
  model = planned(abstract(shape, 1), mesh)
  with jax.set_mesh(mesh):
    state = concrete(jax.eval_shape(lambda m: init_optimizer(config, m), model), mesh)
    ids, weight = ((config.batch_size, config.seq_len + extra) for extra in (1, 0))
    batch = Batch(
      jax.ShapeDtypeStruct(ids, jnp.int32, sharding=rows(mesh)),
      jax.ShapeDtypeStruct(weight, jnp.float32, sharding=rows(mesh)),
    )
    places = jax.tree.map(lambda a: a.sharding, (model, state))
    step = jax.jit(make_step(config), donate_argnums=(0, 1), out_shardings=(*places, None))
    text = step.lower(model, state, batch).compile().as_text()
  sent = [line for line in text.splitlines() if " send(" in line and "megascale" in line]
  kinds = sorted({kind for line in sent for kind in re.findall(r'megascale_transfer_type="(\w+)"', line)})
  arrays = [re.search(r"= \(f32\[([\d,]+)\]", line) for line in sent]
  count = sum(math.prod(map(int, found[1].split(","))) for found in arrays if found)
  print(json.dumps({"kinds": kinds, "bytes": 4 * count, "gradient": bytes_per_device(model), "sends": len(sent)}))


def test_between_slices_only_gradients_are_summed_each_chip_with_its_own_part(tmp_path: Path) -> None:
  paths = os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])])
  done = subprocess.run(
    [sys.executable, __file__],
    env={**environment(), "PYTHONPATH": paths},
    cwd=tmp_path,
    capture_output=True,
    text=True,
    timeout=800,
    check=False,
  )
  assert done.returncode == 0, done.stderr[-2000:]
  found = json.loads(done.stdout.splitlines()[-1])
  assert found["kinds"] == ["ALL_REDUCE"] and found["sends"] > 5
  # Scattered over the four chips of a slice first; the compiler halves the embedding's gradient only before it is sent.
  assert found["gradient"] <= found["bytes"] < 1.5 * found["gradient"]


if __name__ == "__main__":
  compiled_step()
