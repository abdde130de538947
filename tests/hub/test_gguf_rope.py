"""A GGUF file's RoPE scaling is the one that was converted, found again from its factors where need be."""

import gguf
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_models
from gguf_files import refusal
from hypothesis import given
from hypothesis import strategies as st

from jaxchop.hub.gguf_rope import llama3_divisors
from jaxchop.hub.hf_config import parse_config
from jaxchop.hub.load import open_checkpoint

# Widths of 256, as the largest blocks of the quantised formats need.
WIDE = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "head_dim": 64}
LLAMA3 = {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}


@pytest.mark.parametrize(("factor", "length"), [(8.0, 8192), (32.0, 8192), (4.0, 4096)])
def test_llama3_scaling_is_found_again_from_its_factors(make, factor, length):
  scaling = LLAMA3 | {"factor": factor, "original_max_position_embeddings": length}
  divisors = llama3_divisors(scaling, 5e5, 32).astype(np.float32)
  name, config, _ = make(**WIDE, rope_theta=5e5, extra=lambda w: w.add_tensor("rope_freqs.weight", divisors))
  assert open_checkpoint(name).architecture.rope == parse_config(config | {"rope_scaling": scaling}, "x").rope


@given(st.sampled_from([8.0, 32.0]), st.sampled_from([64, 128]))
def test_the_factors_divide_the_frequencies_as_the_model_does(factor, head_dim):
  from jaxchop.model.rope import rotation

  scaling = LLAMA3 | {"factor": factor, "original_max_position_embeddings": 8192}
  base = {**tiny_models.CONFIG, "rope_theta": 5e5, "head_dim": head_dim}
  ones = jnp.ones((1, 1), jnp.int32)
  angle = {
    s: np.arctan2(*rotation(parse_config(base | {"rope_scaling": c}, "x"), ones)[::-1])
    for s, c in (("p", None), ("s", scaling))
  }
  assert np.allclose(angle["p"][0, 0] / angle["s"][0, 0], llama3_divisors(scaling, 5e5, head_dim // 2), rtol=1e-4)


def test_factors_of_another_scaling_are_refused(make):
  divisors = np.linspace(1, 3, 4, dtype=np.float32)
  assert "rope_freqs.weight" in refusal(make(extra=lambda w: w.add_tensor("rope_freqs.weight", divisors))[0])


def test_factors_of_one_are_no_scaling(make):
  name, config, _ = make(extra=lambda w: w.add_tensor("rope_freqs.weight", np.ones(4, np.float32)))
  assert open_checkpoint(name).architecture == parse_config(config, "x")


def test_linear_and_yarn_scaling_are_read(make):
  def linear(writer):
    writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
    writer.add_rope_scaling_factor(4.0)

  def yarn(writer):
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(4.0)
    writer.add_rope_scaling_orig_ctx_len(32)
    writer.add_rope_scaling_yarn_beta_fast(16.0)

  rope = open_checkpoint(make(extra=linear)[0]).architecture.rope
  assert (rope.kind, rope.factor) == ("linear", 4.0)
  rope = open_checkpoint(make(extra=yarn)[0]).architecture.rope
  assert (rope.kind, rope.factor, rope.original_max_positions, rope.beta_fast) == ("yarn", 4.0, 32, 16.0)
