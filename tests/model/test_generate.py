"""Generation continues each prompt as if alone, stops where told, and draws what the seed says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import tiny_llama

from jaxchop.errors import UsageError
from jaxchop.model import generate as module
from jaxchop.model.generate import Sampling, choose, generate

MODEL = tiny_llama()
PROMPTS = [[1, 2, 3], [4, 5, 6, 7, 8], [9]]
WARM = Sampling(temperature=1.0)


whole_pass = jax.jit(MODEL.__call__)


def one_by_one(prompt, new_tokens):
  # What stands after a position does not change its logits, so one length serves all.
  ids = np.zeros((1, 10), np.int32)
  ids[0, : len(prompt)] = prompt
  for position in range(len(prompt), len(prompt) + new_tokens):
    ids[0, position] = whole_pass(ids)[0, position - 1].argmax()
  return ids[0, len(prompt) :][:new_tokens].tolist()


def test_greedy_is_the_best_token_of_a_whole_pass_at_each_step():
  assert generate(MODEL, PROMPTS, max_new_tokens=5) == [one_by_one(prompt, 5) for prompt in PROMPTS]


def test_a_row_ends_with_its_first_eos_and_the_others_go_on():
  free = generate(MODEL, PROMPTS, max_new_tokens=6)
  eos = {free[0][2], 49}
  ended = generate(MODEL, PROMPTS, max_new_tokens=6, eos=eos)
  for row, whole in zip(ended, free, strict=True):
    assert row == whole[: len(row)]
    assert (row[-1] in eos) or len(row) == 6
    assert not eos & set(row[:-1])
  assert len(ended[0]) <= 3


def test_nothing_asked_is_nothing_given():
  assert generate(MODEL, [], max_new_tokens=3) == []
  assert generate(MODEL, PROMPTS, max_new_tokens=0) == [[], [], []]


def test_other_prompts_of_like_length_run_the_same_program():
  generate(MODEL, [[1, 2, 3]], max_new_tokens=7, eos=[3])
  compiled = module._begin.compiled
  generate(MODEL, [[4, 5, 6, 7]], max_new_tokens=5, eos=[8, 9], seed=3)
  assert module._begin.compiled == compiled
  generate(MODEL, [[1] * 5], max_new_tokens=5)
  assert module._begin.compiled == compiled + 1


def test_a_rows_draws_depend_on_seed_row_and_step_alone():
  first = generate(MODEL, PROMPTS, max_new_tokens=6, sampling=WARM, seed=1)
  assert generate(MODEL, PROMPTS, max_new_tokens=6, sampling=WARM, seed=1) == first
  assert generate(MODEL, [PROMPTS[0], [40], [30, 31]], max_new_tokens=6, sampling=WARM, seed=1)[0] == first[0]
  assert generate(MODEL, PROMPTS, max_new_tokens=4, sampling=WARM, seed=1) == [row[:4] for row in first]
  assert generate(MODEL, PROMPTS, max_new_tokens=6, sampling=WARM, seed=2) != first
  same = generate(MODEL, [PROMPTS[0]] * 3, max_new_tokens=6, sampling=WARM, seed=1)
  assert same[0] != same[1]


def test_a_row_draws_by_the_number_of_its_stream_wherever_it_stands():
  settings = {"max_new_tokens": 6, "sampling": WARM, "seed": 1}
  first = generate(MODEL, PROMPTS, **settings)
  assert generate(MODEL, [PROMPTS[2], PROMPTS[0], [40]], streams=[2, 0, 9], **settings)[:2] == [first[2], first[0]]


def test_a_row_that_is_stopped_ends_and_the_others_go_on_as_before():
  free = generate(MODEL, PROMPTS, max_new_tokens=40)
  found = generate(MODEL, PROMPTS, max_new_tokens=40, stopped=lambda row, tokens: row == 1 and len(tokens) >= 10)
  assert [found[0], found[2]] == [free[0], free[2]]
  assert found[1] == free[1][: len(found[1])] and 10 <= len(found[1]) < 40
  assert [len(row) for row in generate(MODEL, PROMPTS, max_new_tokens=40, stopped=lambda *_: True)] == [16] * 3


@pytest.mark.parametrize("sampling", [Sampling(temperature=2.0, top_k=1), Sampling(temperature=2.0, top_p=1e-6)])
def test_a_choice_of_one_is_greedy(sampling):
  assert generate(MODEL, PROMPTS, max_new_tokens=5, sampling=sampling) == generate(MODEL, PROMPTS, max_new_tokens=5)


def drawn(probabilities, sampling, draws=4000):
  logits = jnp.log(jnp.tile(jnp.array(probabilities), (draws, 1)))
  ids = choose(logits, jax.random.split(jax.random.key(0), draws), sampling)
  return np.bincount(ids, minlength=len(probabilities)) / draws


@pytest.mark.parametrize(
  "sampling, expected",
  [
    (Sampling(temperature=1.0), [0.4, 0.3, 0.2, 0.1]),
    (Sampling(temperature=0.5), [16 / 30, 9 / 30, 4 / 30, 1 / 30]),
    (Sampling(temperature=1.0, top_k=2), [4 / 7, 3 / 7, 0, 0]),
    (Sampling(temperature=1.0, top_k=9), [0.4, 0.3, 0.2, 0.1]),
    # The first two reach 0.7 only; the third is the one that passes 0.75.
    (Sampling(temperature=1.0, top_p=0.75), [4 / 9, 3 / 9, 2 / 9, 0]),
    # Of the two that top-k leaves, the first alone has 4/7.
    (Sampling(temperature=1.0, top_k=2, top_p=0.5), [1, 0, 0, 0]),
  ],
)
def test_tokens_come_as_often_as_their_probability_says(sampling, expected):
  # Four thousand draws: three standard deviations are at most 0.024.
  np.testing.assert_allclose(drawn([0.4, 0.3, 0.2, 0.1], sampling), expected, atol=0.03)


@pytest.mark.parametrize(
  "prompts, settings, words",
  [
    ([[1], []], {}, "prompt 1 is empty"),
    ([[1, 50]], {}, r"prompt 0 holds token 50; the model knows 0\.\.49"),
    ([[-1]], {}, "prompt 0 holds token -1"),
    ([[1]], {"max_new_tokens": -1}, "max_new_tokens is -1"),
  ],
)
def test_a_request_that_cannot_be_met_is_refused_in_one_line(prompts, settings, words):
  with pytest.raises(UsageError, match=words) as refusal:
    generate(MODEL, prompts, **{"max_new_tokens": 3, **settings})
  assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("setting", [{"temperature": -1.0}, {"top_k": -1}, {"top_p": 0.0}, {"top_p": 1.5}])
def test_sampling_out_of_range_is_refused(setting):
  with pytest.raises(UsageError, match=next(iter(setting))):
    Sampling(**setting)
