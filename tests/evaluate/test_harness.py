"""What the harness answers is what each request alone would be answered, whatever it is packed with, and is kept."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lm_eval.api.instance import Instance

from jaxchop.errors import JaxchopError, UsageError
from jaxchop.evaluate import harness, scoring
from jaxchop.evaluate.harness import HarnessConfig, JaxchopLM
from jaxchop.evaluate.wishes import wish_of
from jaxchop.model.generate import Sampling, generate
from jaxchop.parallel.rows import mesh_under
from jaxchop.training import MeshConfig

LONGEST = 64
TEXT = "The layers of a model are a list, and to drop some layers in the middle of the list is to slice the list. "
TOKENS = st.lists(st.integers(3, 319), min_size=1, max_size=20)
PAIRS = st.lists(st.tuples(TOKENS, st.lists(st.integers(3, 9), min_size=1, max_size=3)), min_size=1, max_size=12)


def asked(kind, *arguments):
  return [Instance(kind, {}, one, number) for number, one in enumerate(arguments)]


@pytest.fixture(scope="module")
def make(model, tokenizer):
  return lambda model=model, **config: JaxchopLM(model, tokenizer, HarnessConfig(**{"batch_size": 4, **config}))


@pytest.fixture(scope="module")
def lm(make):
  return make()


@pytest.fixture(scope="module")
def logits(model):
  program = jax.jit(lambda ids: model(ids))

  def of(ids):
    return np.asarray(program(np.array([[*ids, *[0] * (LONGEST - len(ids))]]))[0, : len(ids)])

  return of


def alone(logits, context, continuation):
  """Returns log-likelihood and greedy match of one request, by whole logits."""
  ids = [*context, *continuation][-(LONGEST + 1) :]
  logits_TV = logits(ids[:-1])[-len(continuation) :]
  nll_T = jax.nn.logsumexp(logits_TV, axis=-1) - logits_TV[np.arange(len(continuation)), continuation]
  return -float(jnp.sum(nll_T)), logits_TV.argmax(axis=-1).tolist() == list(continuation)


@given(pairs=PAIRS)
@settings(max_examples=15, derandomize=True)
def test_packing_never_changes_an_answer_nor_the_order(make, logits, pairs):
  found = make().score(pairs)
  expected = [alone(logits, *pair) for pair in pairs]
  np.testing.assert_allclose([one for one, _ in found], [one for one, _ in expected], rtol=1e-5, atol=1e-4)
  assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]


def test_a_continuation_that_greedy_decoding_writes_is_said_to_be_greedy(make, model):
  context = [5, 6, 7]
  (best,) = generate(model, [context], max_new_tokens=4)
  found = make().score([(context, best), (context, [*best[:3], best[3] + 1]), (context, best[:2])])
  assert [greedy for _, greedy in found] == [True, False, True]


def test_requests_that_differ_in_their_last_token_alone_are_one_row():
  pairs = [scoring.cut(([1, 2, 3], [4, last]), LONGEST) for last in range(5, 9)]
  (row,) = scoring.rows_of([*pairs, pairs[0]], LONGEST)
  assert len(row.scored) == 5 and len(row.asked) == 5
  # More than a row has places for begin another one.
  pairs = [scoring.cut(([1, 2, 3], [last]), LONGEST) for last in range(100)]
  assert [len(row.scored) for row in scoring.rows_of(pairs, LONGEST)] == [32, 32, 32, 4]


def test_a_long_context_is_cut_off_on_the_left(lm, logits):
  long, end = list(range(3, 203)), [9, 8]
  assert lm.score([(long, end)])[0][0] == pytest.approx(alone(logits, long, end)[0], abs=1e-4)
  assert lm.score([(long, end)]) == lm.score([(long[-(LONGEST - 1) :], end)])
  with pytest.raises(JaxchopError, match="a continuation has 65 tokens, the model 64 positions"):
    lm.score([([1], [5] * 65)])


def test_an_empty_context_is_bos(lm, tokenizer, logits):
  (found,) = lm.loglikelihood(asked("loglikelihood", ("", "the list")), disable_tqdm=True)
  ids = tokenizer.encode("the list", add_special_tokens=False)
  assert found[0] == pytest.approx(alone(logits, [tokenizer.bos_token_id], ids)[0], abs=1e-4)


def test_a_rolling_log_likelihood_is_the_sum_of_its_windows(lm, tokenizer, logits):
  text = TEXT * 6
  ids = tokenizer.encode(text, add_special_tokens=False)
  assert len(ids) > 2 * LONGEST
  found = lm.loglikelihood_rolling(asked("loglikelihood_rolling", (text,), (TEXT[:9],)))
  windows = [alone(logits, [tokenizer.bos_token_id], ids[:LONGEST])]
  for start in range(LONGEST, len(ids), LONGEST):
    part = ids[start : start + LONGEST]
    windows.append(alone(logits, ids[:start][-(LONGEST + 1 - len(part)) :], part))
  assert found[0] == pytest.approx(math.fsum(one for one, _ in windows), abs=1e-3)


def test_few_programs_serve_all_requests(make):
  draw = np.random.default_rng(0)
  pairs = [([7] * draw.integers(1, 150), [number] * draw.integers(1, 60)) for number in range(3, 103)]
  before, lm = scoring.score.compiled, make(batch_size=5)
  for count in (1, 10, 100):
    lm.score(pairs[:count])
  # Rows of 32, 48 and 64 tokens, scored in a few places or in all.
  assert scoring.score.compiled - before <= 6


def test_generation_is_greedy_and_ends_at_a_stop_string_or_in_time(lm, model, tokenizer):
  prompt = tokenizer.encode(TEXT[:30], add_special_tokens=False)
  (free,) = generate(model, [prompt], max_new_tokens=20, eos=[tokenizer.eos_token_id])
  text = tokenizer.decode(free, skip_special_tokens=True)
  stop = text[6:8]
  assert text.strip() and stop.strip()
  found = lm.generate_until(
    asked(
      "generate_until",
      (TEXT[:30], {"max_gen_toks": 20}),
      (TEXT[:30], {"max_gen_toks": 20, "until": [stop]}),
      (TEXT[:30], {"max_gen_toks": 20, "until": stop, "do_sample": False}),
      (TEXT[:30], {"max_new_tokens": 3, "until": []}),
    )
  )
  assert found == [text, *[text.partition(stop)[0]] * 2, tokenizer.decode(free[:3], skip_special_tokens=True)]


def test_a_prompt_is_cut_off_on_the_left_to_leave_room(lm, tokenizer):
  room = LONGEST - 10
  ids = tokenizer.encode(TEXT * 5, add_special_tokens=False)
  prompt, _, _ = lm._asked((TEXT * 5, {"max_gen_toks": 10}), 0)
  assert prompt == ids[-room:]
  with pytest.raises(UsageError, match="max_gen_toks is 64, a row of the model has 64 tokens"):
    lm._asked((TEXT, {"max_gen_toks": LONGEST}), 0)


def test_draws_are_the_same_wherever_a_request_is_packed_and_anew_at_each_repeat(make):
  warm = {"max_gen_toks": 8, "do_sample": True, "temperature": 1.5, "until": []}
  requests = asked("generate_until", *[(TEXT[:n], warm) for n in (9, 9, 30, 12, 60)])
  found = make().generate_until(requests)
  assert make(batch_size=2).generate_until(requests) == found
  assert found[0] != found[1]


def test_what_a_request_asks_for(tokenizer):
  wish = wish_of({"temperature": 0.5, "top_p": 0.9, "until": ["<|start|>", "x"], "num_beams": 1}, tokenizer, [7])
  # A special token that is a stop string ends a text as EOS does: it never shows in the text.
  assert wish.eos == (1, 2, 7) and wish.until == ("<|start|>", "x", "<|end|>") and wish.new_tokens == 256
  assert wish.sampling == Sampling(temperature=0.5, top_k=50, top_p=0.9)
  assert wish_of({"temperature": 0.5, "do_sample": False}, tokenizer, []).sampling == Sampling()
  for asks, words in (({"num_beams": 4}, "num_beams=4"), ({"do_sample": True}, "without a temperature")):
    with pytest.raises(UsageError, match=words):
      wish_of(asks, tokenizer, [])


def test_answers_are_kept_and_another_model_does_not_take_them(make, model, tmp_path, monkeypatch):
  pairs = [([number, 5, 6], [7, number]) for number in range(3, 13)]
  requests = asked("generate_until", *[(TEXT[:n], {"max_gen_toks": 4}) for n in (5, 6, 7, 8, 9)])
  first = make(answers=str(tmp_path))
  scores, texts = first.score(pairs), first.generate_until(requests)
  monkeypatch.setattr(harness, "score", None)
  monkeypatch.setattr(harness, "generate", None)
  again = make(answers=str(tmp_path))
  assert again.score(pairs) == scores and again.generate_until(requests) == texts
  other = jax.tree.map(lambda leaf: leaf, model)
  other.norm.scale[...] = other.norm.scale[...] * 1.01
  for changed in (make(other, answers=str(tmp_path)), make(answers=str(tmp_path), dtype="bfloat16")):
    with pytest.raises(TypeError, match="NoneType"):
      changed.score(pairs)


def test_an_interrupted_evaluation_goes_on_behind_its_last_whole_line(make, tmp_path, monkeypatch):
  pairs = [([number, 5, 6], [7, number]) for number in range(3, 13)]
  scores = make(answers=str(tmp_path)).score(pairs)
  file = tmp_path / "answers.jsonl"
  lines = file.read_bytes().splitlines(keepends=True)
  assert len(lines) == 10
  file.write_bytes(b"".join(lines[:6]) + lines[6][:30])
  rows = []
  monkeypatch.setattr(harness, "rows_of", lambda left, longest: rows.extend(left) or scoring.rows_of(left, longest))
  assert make(answers=str(tmp_path)).score(pairs) == pytest.approx(np.array(scores), abs=1e-4)
  assert len(rows) == 4
  keys = [json.loads(line)["key"] for line in file.read_bytes().splitlines() if line.endswith(b"}")]
  assert len(set(keys)) == 10


def test_rows_spread_over_devices_or_not_are_answered_alike(model, tokenizer):
  pairs = [([*range(3, 3 + number)], [7, number]) for number in range(3, 13)]
  prompts = asked("generate_until", *[(TEXT[:n], {"max_gen_toks": 6}) for n in (5, 16, 27)])
  # Four rows go to four devices, of six rows each of two devices has three.
  configs = [(4, MeshConfig(fsdp=1)), (4, MeshConfig()), (4, MeshConfig(data=2)), (6, MeshConfig())]
  lms = [JaxchopLM(model, tokenizer, HarnessConfig(batch_size=size), mesh=mesh) for size, mesh in configs]
  assert [mesh and mesh.size for mesh in (mesh_under(lm.model) for lm in lms)] == [None, 4, 4, 2]
  scores = [[one for one, _ in lm.score(pairs)] for lm in lms]
  np.testing.assert_allclose(scores[1:], [scores[0]] * 3, atol=1e-4)
  texts = [lm.generate_until(prompts) for lm in lms]
  assert texts[1:] == [texts[0]] * 3


def test_answers_in_bfloat16_are_near(make):
  pairs = [([*range(3, 3 + number)], [7, number]) for number in range(3, 13)]
  scores = [[one for one, _ in make(dtype=dtype).score(pairs)] for dtype in ("float32", "bfloat16")]
  assert scores[1] != scores[0]
  np.testing.assert_allclose(scores[1], scores[0], atol=0.3)


@pytest.mark.parametrize("setting", [{"batch_size": 0}, {"dtype": "float8"}, {"max_length": 0}])
def test_a_setting_that_makes_no_sense_is_refused(setting):
  with pytest.raises(UsageError, match=next(iter(setting))):
    HarnessConfig(**setting)
