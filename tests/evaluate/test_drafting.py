"""A drafter is measured on every prompt, with the target in turn, and what it writes is compared."""

import dataclasses

import numpy as np
import pytest
from flax import nnx

from jaxchop.errors import UsageError
from jaxchop.evaluate import drafting
from jaxchop.evaluate.drafting import measure_drafting
from jaxchop.model.config import LlamaConfig
from jaxchop.model.llama import Llama

CONFIG = LlamaConfig(
  vocab_size=20, width=8, mlp_width=8, heads=2, kv_heads=1, head_dim=4, norm_eps=1e-5, max_positions=64
)
TARGET = Llama(CONFIG, 2, rngs=nnx.Rngs(0))
IDS_NT = np.arange(12, dtype=np.int32).reshape(3, 4)


def test_a_drafter_that_is_the_target_has_all_its_tokens_taken(monkeypatch):
  clock = iter(range(10_000))
  monkeypatch.setattr(drafting.time, "perf_counter", lambda: float(next(clock)))
  found = measure_drafting(TARGET, TARGET, IDS_NT, drafted=[1, 3], new_tokens=9, repeats=2)
  one, three = found.lengths
  # The first token is the prompt's; 8 more take 4 rounds of 2, or 2 of 4.
  assert (one.rounds, three.rounds) == ((0, 3 * 4), (0, 0, 0, 3 * 2))
  assert (three.accepted, three.tokens_per_pass, three.differing) == (3, 4, {})
  # Every reading of the clock is one second after the last.
  assert len(one.gain.repeats) == 6 and one.gain.median == 1 and found.target_tokens_per_second == 9
  assert "3 held-out prompts of 4 tokens" in found.protocol


def test_a_text_that_is_not_the_targets_is_told_with_its_place(monkeypatch):
  honest = drafting.speculate

  def wrong(draft, target, prompt, **settings):
    found = honest(draft, target, prompt, **settings)
    return dataclasses.replace(found, tokens=[*found.tokens[:2], 99, *found.tokens[3:]]) if prompt[0] == 4 else found

  monkeypatch.setattr(drafting, "speculate", wrong)
  found = measure_drafting(TARGET, TARGET, IDS_NT, drafted=[3], new_tokens=9, repeats=1)
  assert found.lengths[0].differing == {1: 2}


@pytest.mark.parametrize("count", ["drafted", "new_tokens", "repeats"])
def test_a_count_of_nothing_is_refused(count):
  settings = {"drafted": [2], "new_tokens": 4, "repeats": 1} | {count: [0] if count == "drafted" else 0}
  with pytest.raises(UsageError, match=f"{count} is 0"):
    measure_drafting(TARGET, TARGET, IDS_NT, **settings)
