"""probe: the same tokens for every model of a kind, long enough to pass a short trained length."""

import dataclasses

import numpy as np
import pytest
from flax import nnx

from jaxchop.hub.probe import cacheable, cached_logits, full_logits, probe
from jaxchop.model.config import LlamaConfig, Rope
from jaxchop.model.llama import Llama

CONFIG = LlamaConfig(
  vocab_size=50, width=16, mlp_width=24, heads=4, kv_heads=2, head_dim=4, norm_eps=1e-5, max_positions=24
)


@pytest.mark.parametrize("reach, length", [(24, 64), (100, 116), (496, 512), (497, 64), (131072, 64)])
def test_a_probe_passes_the_trained_length_where_that_is_affordable(reach, length):
  ids_T = probe(dataclasses.replace(CONFIG, max_positions=reach))
  assert len(ids_T) == length and ids_T.min() >= 0 and ids_T.max() < CONFIG.vocab_size


def test_the_trained_length_is_the_one_before_scaling():
  rope = Rope(kind="yarn", factor=64.0, original_max_positions=100)
  assert len(probe(dataclasses.replace(CONFIG, max_positions=6400, rope=rope))) == 116


@pytest.mark.parametrize("kind", ["default", "linear", "dynamic", "yarn"])
def test_both_ways_agree_where_they_must(kind):
  config = dataclasses.replace(CONFIG, rope=Rope(kind=kind, factor=2.0, original_max_positions=12))
  model = Llama(config, 2, rngs=nnx.Rngs(0))
  part_T = cacheable(config, probe(config))
  assert len(part_T) == (24 if kind == "dynamic" else 64)
  np.testing.assert_allclose(cached_logits(model, part_T), full_logits(model, part_T), atol=1e-6)
