"""Scores by a function that the user brings."""

import pytest
from flax import nnx

from jaxchop.errors import JaxchopError, UsageError
from jaxchop.model.config import LlamaConfig
from jaxchop.model.llama import Llama
from jaxchop.prune.search import greedy_by, lost_without_each

CONFIG = LlamaConfig(
  vocab_size=8, width=8, mlp_width=8, heads=1, kv_heads=1, head_dim=8, norm_eps=1e-5, max_positions=8
)
WORTH = (5.0, 1.0, 3.0, 1.0)


@pytest.fixture(scope="module")
def model():
  """Every layer carries its worth in its first norm."""
  model = Llama(CONFIG, 4, rngs=nnx.Rngs(0))
  for layer, worth in zip(model.layers, WORTH, strict=True):
    layer.attention_norm.scale[...] = layer.attention_norm.scale[...] * worth
  return model


def judge(model):
  """The sum of worths, but layer 2 is worth nothing without layer 1 or 3."""
  worths = [float(layer.attention_norm.scale[0]) for layer in model.layers]
  return sum(worths) - (3.0 if 3.0 in worths and 1.0 not in worths else 0.0)


def test_what_is_lost_without_a_layer_is_its_worth(model):
  assert lost_without_each(model, judge) == (5.0, 1.0, 3.0, 1.0)


def test_greedy_removal_measures_anew_in_each_round(model):
  # Of the two equal ones the later goes first; then losing the other would cost layer 2's worth too.
  assert greedy_by(model, judge, 3) == ((3, 9.0), (2, 6.0), (1, 5.0))


def test_only_candidates_go(model):
  assert [layer for layer, _ in greedy_by(model, judge, 2, candidates=[0, 2])] == [2, 0]


@pytest.mark.parametrize("count", [-1, 3, 4])
def test_a_count_that_cannot_go_is_refused(model, count):
  with pytest.raises(UsageError, match=str(count)):
    greedy_by(model, judge, count, candidates=[0, 2])


def test_a_value_that_is_no_number_is_refused(model):
  with pytest.raises(JaxchopError, match="not a number"):
    lost_without_each(model, lambda model: float("nan"))
