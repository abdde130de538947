"""What a removed layer gains is held against its share of a step's work."""

import dataclasses

import pytest
from flax import nnx

from jaxchop.evaluate.ideal import gain, step_bytes
from jaxchop.evaluate.speed import Speed
from jaxchop.evaluate.spread import spread
from jaxchop.model.config import LlamaConfig
from jaxchop.model.llama import Llama

CONFIG = LlamaConfig(
  vocab_size=20, width=8, mlp_width=8, heads=2, kv_heads=1, head_dim=4, norm_eps=1e-5, max_positions=32, tied=True
)
UNTIED = dataclasses.replace(CONFIG, tied=False)
# Norms, queries and output, keys and values, MLP.
LAYER = 4 * (2 * 8 + 2 * 64 + 2 * 32 + 3 * 64)
OUTSIDE = 4 * (8 + 20 * 8)


def model(layers, config=CONFIG):
  return Llama(config, layers, rngs=nnx.Rngs(0))


def took(layers, seconds, **changes):
  """Returns a speed of 2 rows, each of 3 + 2 tokens, that decoded in so many seconds a token."""
  written = spread([2 * seconds])
  known = {"layers": layers, "batch": 2, "prompt_tokens": 3, "new_tokens": 2, "decode": written} | changes
  rest = {field.name: None for field in dataclasses.fields(Speed) if field.name not in known}
  return Speed(**known, **rest)


@pytest.mark.parametrize("config", [CONFIG, UNTIED])
def test_a_step_reads_the_layers_the_head_and_the_cache_but_of_an_untied_embedding_a_row(config):
  cache = 2 * 3 * 4 * (2 * 5) * 4
  assert step_bytes(model(3, config), took(3, 1.0)) == 3 * LAYER + OUTSIDE + cache


def test_a_model_whose_time_is_its_bytes_reaches_the_ideal_by_bytes():
  bytes_of = {layers: step_bytes(model(layers), took(layers, 1.0)) for layers in (4, 1)}
  found = gain(model(4), model(1), took(4, bytes_of[4]), took(1, bytes_of[1]))
  assert found.of_bytes == pytest.approx(1) and found.decode == pytest.approx(found.ideal_by_bytes)
  assert found.of_layers < 1 and found.ideal_by_layers == 4
  assert found.fixed_seconds == pytest.approx(OUTSIDE)


def test_a_model_whose_time_is_its_layers_reaches_the_ideal_by_layers():
  found = gain(model(4), model(3), took(4, 8.0), took(3, 6.0))
  assert (found.of_layers, found.saved_per_layer, found.layer_seconds, found.fixed_seconds) == (1, 0.25, 2, 0)


def test_there_is_no_gain_of_nothing():
  assert gain(model(2), model(2), took(2, 1.0), took(2, 1.0)) is None
  assert gain(model(2), model(1), took(2, 1.0, decode=None), took(1, 1.0, decode=None)) is None
