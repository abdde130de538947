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
  for one in found.values():
    assert (one.prefill_tokens_per_second, one.decode_tokens_per_second, one.tokens_per_second) == (16.0, 8.0, 4.0)
    assert one.latency.repeats == (2.0, 2.0, 2.0)
  assert "2 x 8 random prompt tokens, then 4 greedy tokens; float32" in found["pruned"].protocol


def test_models_take_turns_after_a_warm_up(monkeypatch):
  order = []
  turn = speed._turn
  monkeypatch.setattr(speed, "_turn", lambda program: order.append(program) or turn(program))
  found = compare_speed(MODELS, prompt_tokens=4, new_tokens=2, repeats=2, warm_up=3)
  assert len(order) == 10 and order[0] != order[1] and order == order[:2] * 5
  assert len(found["whole"].decode.repeats) == 2


def test_the_measured_decoding_is_the_models_own_and_writes_into_the_cache_it_was_given():
  programs = speed._compile(MODELS["whole"], 1, 4, 3)
  logits_BV, given = programs.read()
  _, cache = programs.write(logits_BV, given)
  assert cache.written == 7 and cache.slots == 7
  assert all(leaf.is_deleted() for leaf in jax.tree.leaves((given.keys, given.values)))


def test_without_new_tokens_all_logits_of_the_prompt_are_computed():
  programs = speed._compile(MODELS["whole"], 2, 4, 0)
  assert programs.write is None and programs.read().shape == (2, 4, 20)
  found = compare_speed(MODELS, prompt_tokens=4, new_tokens=0, repeats=1)["whole"]
  assert found.decode is None and found.decode_tokens_per_second == 0
  assert found.tokens_per_second == found.prefill_tokens_per_second


def test_the_planned_memory_holds_weights_and_cache_once():
  one, many = (speed._compile(MODELS["whole"], rows, 4, 1000) for rows in (1, 9))
  weights = sum(leaf.nbytes for leaf in jax.tree.leaves(MODELS["whole"]))
  row = 2 * 2 * 1004 * 4 * 4
  assert one.memory_bytes >= weights + row
  assert 8 * row <= many.memory_bytes - one.memory_bytes < 16 * row


def test_the_peak_is_the_devices_where_it_counts_and_the_processs_elsewhere(monkeypatch):
  here = speed.peak_memory()
  assert here["bytes"] > 1e7 and "process" in here["of"]

  class Counting:
    def memory_stats(self):
      return {"peak_bytes_in_use": 5}

  monkeypatch.setattr(speed.jax, "local_devices", lambda: [Counting()])
  assert speed.peak_memory()["bytes"] == 5 and "device" in speed.peak_memory()["of"]


@pytest.mark.parametrize(
  ("count", "value"), [("batch", 0), ("prompt_tokens", 0), ("new_tokens", -1), ("repeats", 0), ("warm_up", -1)]
)
def test_a_count_of_nothing_is_refused(count, value):
  with pytest.raises(UsageError, match=f"{count} is {value}"):
    compare_speed(MODELS, **{count: value})
