"""Speed is measured on all models in turn and says how."""

import jax
import pytest
from flax import nnx

from jaxchop.errors import UsageError
from jaxchop.evaluate import speed
from jaxchop.evaluate.speed import compare_speed
from jaxchop.model.config import LlamaConfig
from jaxchop.model.llama import Llama

CONFIG = LlamaConfig(
  vocab_size=20, width=8, mlp_width=8, heads=2, kv_heads=1, head_dim=4, norm_eps=1e-5, max_positions=32
)
MODELS = {"whole": Llama(CONFIG, 2, rngs=nnx.Rngs(0)), "pruned": Llama(CONFIG, 1, rngs=nnx.Rngs(0))}


def test_tokens_a_second_are_tokens_of_all_rows_by_the_median_time(monkeypatch):
  clock = iter(range(10_000))
  monkeypatch.setattr(speed.time, "perf_counter", lambda: float(next(clock)))
  found = compare_speed(MODELS, batch=2, prompt_tokens=8, new_tokens=4, repeats=3)
  # Every reading of the clock is one second after the last.
  assert {name: (s.prefill_tokens_per_second, s.decode_tokens_per_second) for name, s in found.items()} == {
    "whole": (16.0, 8.0),
    "pruned": (16.0, 8.0),
  }
  assert "2 x 8 random prompt tokens, then 4 greedy tokens; float32" in found["pruned"].protocol


def test_models_take_turns_after_a_warm_up(monkeypatch):
  order = []
  timed = speed._timed
  monkeypatch.setattr(speed, "_timed", lambda run, *rest: order.append(run) or timed(run, *rest))
  compare_speed(MODELS, prompt_tokens=4, new_tokens=2, repeats=2)
  assert len(order) == 12 and order[:4] == order[4:8] == order[8:] and len(set(order[:4])) == 4


def test_the_measured_decoding_is_the_models_own():
  read, write = speed._compile(MODELS["whole"], 1, 4, 3)
  _, cache = write(*read())
  assert cache.written == 7 and jax.tree.leaves(cache.keys)[0].shape[-1] == 7


@pytest.mark.parametrize("count", ["batch", "prompt_tokens", "new_tokens", "repeats"])
def test_a_count_of_nothing_is_refused(count):
  with pytest.raises(UsageError, match=f"{count} is 0"):
    compare_speed(MODELS, **{count: 0})
