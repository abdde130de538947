"""A drafter changes how many passes a text takes, never the text."""

import re

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny_llama

from jaxchop.errors import UsageError
from jaxchop.model import speculate as module
from jaxchop.model.config import Rope
from jaxchop.model.generate import generate
from jaxchop.model.speculate import speculate
from jaxchop.prune.surgery import keep_layers

TARGET = tiny_llama(3)
# One as pruning makes it, and one that knows nothing of the target.
OTHER = jax.tree.map(lambda leaf: leaf[::-1] if leaf.ndim == 2 else leaf, tiny_llama(1))
DRAFTS = {"pruned": keep_layers(TARGET, [0, 2]), "other": OTHER}


@settings(max_examples=60, deadline=None)
@given(
  name=st.sampled_from(sorted(DRAFTS)),
  # These lengths share their programs.
  prompt=st.lists(st.integers(0, 49), min_size=5, max_size=8),
  count=st.integers(9, 16),
  end=st.none() | st.integers(0, 15),
)
def test_the_text_is_the_targets_greedy_one(name, prompt, count, end):
  whole = generate(TARGET, [prompt], max_new_tokens=count)[0]
  eos = [] if end is None else [whole[end % count]]
  found = speculate(DRAFTS[name], TARGET, prompt, max_new_tokens=count, drafted=3, eos=eos)
  assert found.tokens == (whole[: whole.index(eos[0]) + 1] if eos else whole)
  assert len(found.rounds) == 4


def test_a_drafter_that_is_the_target_is_always_right():
  found = speculate(TARGET, TARGET, [3, 1, 4, 1, 5], max_new_tokens=13, drafted=3)
  # The first token is the prompt's; a round then writes one more than it drafts.
  assert found.rounds == (0, 0, 0, 3)


def test_rounds_that_are_counted_write_the_tokens():
  found = speculate(DRAFTS["pruned"], TARGET, [7, 7, 1, 2, 0], max_new_tokens=16, drafted=3)
  written = 1 + sum(count * (taken + 1) for taken, count in enumerate(found.rounds))
  assert 16 <= written < 16 + 4 and found.rounds[0] and sum(found.rounds[1:])


def test_one_program_serves_all_prompts_and_neither_cache_is_copied():
  state = _state()
  speculate(DRAFTS["pruned"], TARGET, [1, 2, 3, 4, 5], max_new_tokens=16, drafted=3)
  before = module._continue.compiled
  speculate(DRAFTS["pruned"], TARGET, [5, 6, 7, 8, 9, 10], max_new_tokens=9, drafted=3)
  assert module._continue.compiled == before
  models, limit = (DRAFTS["pruned"], TARGET), np.int32(16)
  program = module._continue.lower(models, state, module.ends([]), limit, drafted=3).compile()
  caches = jax.tree.leaves((state.draft, state.target))
  assert program.memory_analysis().alias_size_in_bytes >= sum(leaf.nbytes for leaf in caches)
  for leaf in (*state.draft.keys, *state.target.values):
    assert not re.findall(rf"f32\[{','.join(map(str, leaf.shape))}\]\S* copy\(", program.as_text())


def _state():
  ids_1T, first_1 = module.padded([[1, 2, 3, 4, 5]])
  return module._begin((DRAFTS["pruned"], TARGET), ids_1T, first_1, module.ends([]), room=16 + 3, drafted=3)


@pytest.mark.parametrize(
  ("change", "words"),
  [
    ({"drafted": 0}, "at least 1"),
    ({"prompt": []}, "prompt 0 is empty"),
    ({"prompt": [50]}, "holds token 50"),
    ({"draft": tiny_llama(1, vocab_size=40)}, "40 and 50 tokens"),
    ({"draft": tiny_llama(1, rope=Rope(kind="dynamic", factor=2.0)), "max_new_tokens": 70}, "dynamic RoPE"),
  ],
)
def test_what_cannot_be_speculated_is_refused(change, words):
  asked = {"draft": TARGET, "target": TARGET, "prompt": [1, 2], "max_new_tokens": 4, "drafted": 2} | change
  with pytest.raises(UsageError, match=words):
    speculate(asked.pop("draft"), asked.pop("target"), asked.pop("prompt"), **asked)
