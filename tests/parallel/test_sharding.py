"""Every parameter has a rule, and what lies everywhere by accident is named."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax.sharding import AbstractMesh, AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxchop.errors import JaxchopError, UsageError
from jaxchop.model.axes import axes
from jaxchop.model.config import LlamaConfig
from jaxchop.model.llama import Llama
from jaxchop.model.tree import abstract, flatten
from jaxchop.parallel.mesh import AXES, make_mesh
from jaxchop.parallel.sharding import (
  audit,
  bytes_per_device,
  concrete,
  in_stripes,
  placement,
  planned,
  rows,
  spread,
)
from jaxchop.recover.step import init_optimizer
from jaxchop.training import MeshConfig, RecoverConfig

CONFIG = LlamaConfig(
  vocab_size=1024,
  width=32,
  mlp_width=64,
  heads=4,
  kv_heads=2,
  head_dim=8,
  norm_eps=1e-5,
  max_positions=64,
  tied=False,
  attention_bias=True,
  mlp_bias=True,
)


@pytest.fixture(scope="module")
def model():
  return Llama(CONFIG, 1, rngs=nnx.Rngs(0))


@pytest.fixture(scope="module")
def mesh():
  return make_mesh(MeshConfig(fsdp=2, tensor=2), CONFIG, rows=4, length=12)


def test_every_parameter_has_as_many_named_axes_as_its_array(model):
  for name, leaf in flatten(model).items():
    assert len(axes(name)) == leaf.ndim, name
    assert leaf.ndim == 1 or None not in axes(name), name


def test_kernels_are_cut_both_ways_and_norms_not_at_all(model, mesh):
  found = {name: leaf.sharding.spec for name, leaf in flatten(spread(model, mesh)).items()}
  assert found["layers.0.attention.q.kernel"] == P("fsdp", "tensor")
  assert found["layers.0.mlp.down.kernel"] == P("tensor", "fsdp")
  assert found["embedding"] == P("tensor", "fsdp") and found["head"] == P("fsdp", "tensor")
  assert found["layers.0.attention.q.bias"] == P("tensor")
  assert found["layers.0.mlp.down.bias"] == found["norm.scale"] == P(None)


def test_a_vocabulary_that_does_not_divide_stays_whole(mesh):
  assert placement("embedding", (1023, 32), mesh).spec == P(None, "fsdp")


def test_axes_of_one_device_are_not_named():
  mesh = make_mesh(MeshConfig(data=4, fsdp=1), CONFIG, rows=4, length=12)
  assert rows(mesh).spec == P(("data",), None)
  assert placement("embedding", (1024, 32), mesh).spec == P(None, None)


@pytest.mark.parametrize(
  ("length", "width", "said"),
  [
    (10, 32, r"mesh\.context is 4, which does not divide recover\.seq_len, 10"),
    (12, 34, r"mesh\.fsdp x mesh\.context is 4, which does not divide the model's width, 34"),
  ],
)
def test_sequences_and_widths_that_devices_cannot_share_evenly_are_refused(length, width, said):
  with pytest.raises(UsageError, match=said):
    make_mesh(MeshConfig(fsdp=1, context=4), dataclasses.replace(CONFIG, width=width), rows=1, length=length)


def test_a_sequence_lies_in_stripes_and_its_devices_share_the_weights():
  mesh = make_mesh(MeshConfig(fsdp=2, context=2), CONFIG, rows=4, length=12)
  assert placement("embedding", (1024, 32), mesh).spec == P(None, ("fsdp", "context"))
  with jax.set_mesh(mesh):
    ids = jax.jit(in_stripes)(jax.device_put(jnp.arange(24).reshape(2, 12), rows(mesh)))
  found = {tuple(shard.data.ravel().tolist()) for shard in ids.addressable_shards}
  assert found == {tuple(range(start, start + 12, 2)) for start in (0, 1, 12, 13)}


def test_one_device_needs_no_mesh():
  assert make_mesh(MeshConfig(fsdp=1), CONFIG, rows=4, length=12) is None


def test_a_large_array_that_lies_everywhere_is_named(model, mesh):
  state = {"model": flatten(spread(model, mesh)), "moments": jnp.zeros(1)}
  audit(state, mesh)
  state["moments"] = jax.device_put(jnp.zeros((512, 513)), NamedSharding(mesh, P()))
  with pytest.raises(JaxchopError, match=r"moments: 1,050,624 bytes lie whole on each of 4 devices"):
    audit(state, mesh)


def test_copies_of_the_model_are_no_accident():
  mesh = make_mesh(MeshConfig(data=4, fsdp=1), CONFIG, rows=4, length=12)
  audit({"moments": jax.device_put(jnp.zeros((512, 513)), NamedSharding(mesh, P()))}, mesh)


LLAMA_3_70B = LlamaConfig(
  vocab_size=128256, width=8192, mlp_width=28672, heads=64, kv_heads=8, head_dim=128, norm_eps=1e-5, max_positions=8192
)


def abstract_mesh(*sizes):
  return AbstractMesh(sizes, AXES, axis_types=(AxisType.Explicit,) * len(AXES))


@pytest.mark.parametrize("sizes", [(1, 64, 1, 1), (4, 16, 2, 8)], ids=["64 parts", "1024 devices"])
def test_seventy_billion_parameters_are_planned_for_without_holding_one(sizes):
  mesh = abstract_mesh(*sizes)
  model = planned(abstract(LLAMA_3_70B, 80), mesh)
  with jax.sharding.use_abstract_mesh(mesh):
    optimizer = concrete(jax.eval_shape(lambda m: init_optimizer(RecoverConfig(), m), model), mesh)
  audit({"model": model, "optimizer": optimizer}, mesh)
  count, norms = 70_553_706_496, 161 * 8192
  weights = 4 * ((count - norms) // (mesh.size // sizes[0]) + norms)
  assert sum(leaf.size for leaf in jax.tree.leaves(model)) == count
  assert bytes_per_device(model) == weights
  # Two moments and two counters; a gradient is as large as the weights are.
  assert bytes_per_device(optimizer) == 2 * weights + 8


@pytest.mark.parametrize("vocab", [128257, 257])
def test_a_vocabulary_that_does_not_divide_may_stay_whole_if_it_is_small(vocab):
  mesh = abstract_mesh(1, 1, 1, 8)
  model = planned(abstract(dataclasses.replace(LLAMA_3_70B, vocab_size=vocab, width=64), 1), mesh)
  if vocab < 1000:
    audit(model, mesh)
  else:
    with pytest.raises(JaxchopError, match=r"embedding: 32,833,792 bytes lie whole on each of 8 devices"):
      audit(model, mesh)
