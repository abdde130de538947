"""What the TPU compiler makes of the training step on several slices: no TPU is needed for it, only its library."""

import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import topologies

from jaxchop.data.batch import Batch
from jaxchop.model.config import LlamaConfig
from jaxchop.model.tree import abstract
from jaxchop.parallel.mesh import make_mesh
from jaxchop.parallel.sharding import bytes_per_device, concrete, planned, rows
from jaxchop.preflight.alone import alone
from jaxchop.recover.step import init_optimizer, make_step
from jaxchop.training import MeshConfig, RecoverConfig

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("found_alone")]


def sent() -> dict[str, Any]:
  """Returns what the step of a small model sends between two slices of four chips."""
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
  lines = [line for line in text.splitlines() if " send(" in line and "megascale" in line]
  kinds = sorted({kind for line in lines for kind in re.findall(r'megascale_transfer_type="(\w+)"', line)})
  arrays = [re.search(r"= \(f32\[([\d,]+)\]", line) for line in lines]
  count = sum(math.prod(map(int, found[1].split(","))) for found in arrays if found)
  return {"kinds": kinds, "bytes": 4 * count, "gradient": bytes_per_device(model), "sends": len(lines)}


def test_between_slices_only_gradients_are_summed_each_chip_with_its_own_part() -> None:
  found = alone(sent)
  assert found["kinds"] == ["ALL_REDUCE"] and found["sends"] > 5
  # Scattered over the four chips of a slice first; the compiler halves the embedding's gradient only before it is sent.
  assert found["gradient"] <= found["bytes"] < 1.5 * found["gradient"]
