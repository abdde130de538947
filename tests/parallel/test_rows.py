"""Rows go where a model's devices want them; every suite says of a spread model what it says of a whole one."""

import jax
import numpy as np
import pytest
import tiny_models
import transformers
from flax import nnx

from jaxchop.config import DataConfig, EvaluateConfig
from jaxchop.data.texts import read_splits
from jaxchop.evaluate.suites import Asked, suites
from jaxchop.model.config import LlamaConfig
from jaxchop.model.llama import Llama
from jaxchop.parallel.mesh import make_mesh
from jaxchop.parallel.rows import Rows, mesh_under
from jaxchop.parallel.sharding import spread
from jaxchop.training import MeshConfig


@pytest.fixture(scope="module")
def tokenizer():
  tokens = tiny_models.tokenizer()
  return transformers.PreTrainedTokenizerFast(tokenizer_object=tokens, bos_token="<|start|>", eos_token="<|end|>")


@pytest.fixture(scope="module")
def model(tokenizer):
  config = LlamaConfig(
    vocab_size=len(tokenizer),
    width=16,
    mlp_width=24,
    heads=2,
    kv_heads=2,
    head_dim=8,
    norm_eps=1e-5,
    max_positions=256,
  )
  return jax.jit(lambda: Llama(config, 2, rngs=nnx.Rngs(0)))()


def spread_over(model, **axes):
  mesh = make_mesh(MeshConfig(**axes), model.config, 4, 1)
  return spread(model, mesh)


def test_a_batch_has_rows_for_every_device(model):
  assert mesh_under(model) is None and Rows(model, 3).count == 3
  over = Rows(spread_over(model, fsdp=4), 3)
  assert over.count == 4 and Rows(spread_over(model, fsdp=2, tensor=2), 3).count == 4
  batch = over.filled((np.arange(6).reshape(3, 2), np.ones(3, bool)))
  assert batch[0][3].tolist() == [0, 0] and not batch[1][3]
  assert [len(shard.data) for shard in over.place(batch)[1].addressable_shards] == [1] * 4
  with over.on_devices():
    assert jax.sharding.get_abstract_mesh().shape["fsdp"] == 4


@pytest.mark.slow
@pytest.mark.parametrize("axes", [{"data": 2, "fsdp": 1, "tensor": 2}, {"fsdp": 4}])
def test_a_spread_model_is_measured_as_a_whole_one(model, tokenizer, axes):
  names = ("perplexity", "documents", "capability")
  config = EvaluateConfig(window=32, stride=32, batch_size=3, max_windows=5, probe_items=1, suite=names)
  texts = read_splits(DataConfig(source="builtin", held_out_share=0.0005))

  def told(model):
    asked = Asked(lambda: model, tokenizer, eos=[tokenizer.eos_token_id], title="it")
    return {key: one["value"] for each in suites(config, texts) for key, one in each.run(asked)["figures"].items()}

  alone, spread_out = told(model), told(spread_over(model, **axes))
  assert spread_out == pytest.approx(alone, rel=1e-5) and len(alone) == 11
