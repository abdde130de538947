"""Conversations in records: whole, apart from each other, and only their answers to be predicted."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_pack import Stopped, files, records, small_parts

from jaxchop.data.batch import batch_of
from jaxchop.data.loader import Loader
from jaxchop.data.pack import pack
from jaxchop.data.packed import open_packed
from jaxchop.data.sources import Document
from jaxchop.errors import JaxchopError

EOS = 256


def talk(number, prompt, answer):
  return Document(f"talks:{number}", prompt + answer, ((len(prompt), len(prompt) + len(answer)),))


def whole(documents, tokenizer, out, seq_len=7, **more):
  return pack(documents, tokenizer, seq_len=seq_len, out=out, eos=EOS, whole=True, overwrite=True, **more)


def test_records_hold_whole_documents_and_are_filled_with_eos(tmp_path, byte_tokenizer):
  talks = [talk(0, "ab", "c"), talk(1, "d", "ef"), talk(2, "gh", "ijk")]
  packed = whole(talks, byte_tokenizer, tmp_path)
  assert packed.records == 2 and packed.tokens == 11 and packed.dropped_tokens == 0
  ids = [byte_tokenizer.encode("abcdef") + [EOS] * 2, byte_tokenizer.encode("ghijk") + [EOS] * 3]
  assert records(packed).tolist() == ids
  assert records(packed, "segments").tolist() == [[1, 1, 1, 2, 2, 2, 3, 3], [1, 1, 1, 1, 1, 2, 2, 2]]
  assert records(packed, "targets").tolist() == [[0, 0, 1, 0, 1, 1, 0, 0], [0, 0, 1, 1, 1, 0, 0, 0]]
  assert packed.targets and packed.segments and open_packed(tmp_path) == packed


def test_long_ones_are_cut_and_those_without_an_answer_left_are_dropped(tmp_path, byte_tokenizer):
  talks = [talk(0, "a" * 9, "b"), talk(1, "c", "d" * 12), talk(2, "", "e"), talk(3, "f", "g")]
  packed = whole(talks, byte_tokenizer, tmp_path)
  assert records(packed).tolist() == [byte_tokenizer.encode("cddddddd"), byte_tokenizer.encode("fg") + [EOS] * 6]
  assert (packed.tokens, packed.dropped_tokens) == (26, 10 + 5 + 1)


def test_nothing_to_learn_is_refused(tmp_path, byte_tokenizer):
  with pytest.raises(JaxchopError, match="no answer begins within 8 tokens of a conversation: set seq_len higher"):
    whole([talk(0, "a" * 9, "b")], byte_tokenizer, tmp_path)


TALKS = st.lists(st.tuples(st.integers(0, 9), st.integers(1, 9)), min_size=4, max_size=16)


@settings(max_examples=25)
@given(TALKS, st.integers(2, 12))
def test_every_answer_is_predicted_once_from_its_own_conversation(tmp_path_factory, byte_tokenizer, sizes, seq_len):
  letters = "abcdefghijklmnop"
  talks = [talk(n, letters[n] * prompt, letters[n].upper() * answer) for n, (prompt, answer) in enumerate(sizes)]
  room = seq_len + 1
  expected = {
    letters[n]: min(p + a, room) - max(p, 1) for n, (p, a) in enumerate(sizes) if min(p + a, room) > max(p, 1)
  }
  if not expected:
    return
  packed = whole(talks, byte_tokenizer, tmp_path_factory.mktemp("whole"), seq_len)
  tokens, segments, targets = (records(packed, name) for name in ("tokens", "segments", "targets"))
  batch = batch_of(tokens, segments, targets)
  found = {}
  for row, column in zip(*np.nonzero(batch.weight), strict=True):
    from_, predicted = (byte_tokenizer.decode([tokens[row, at]]) for at in (column, column + 1))
    assert predicted.isupper() and from_.lower() == predicted.lower()
    found[from_.lower()] = found.get(from_.lower(), 0) + 1
  assert found == expected and (batch.weight.sum(axis=1) > 0).all()
  kept = sum(min(p + a, room) for p, a in sizes if min(p + a, room) > max(p, 1))
  assert packed.tokens == sum(p + a for p, a in sizes) == kept + packed.dropped_tokens


@settings(max_examples=15, deadline=None)
@given(TALKS, st.lists(st.integers(0, 12), min_size=1, max_size=3), st.sampled_from([1, 2]))
def test_a_build_that_was_stopped_goes_on_to_the_same_bytes(tmp_path_factory, byte_tokenizer, sizes, stops, workers):
  talks = [talk(n, "a" * prompt, "b" * answer) for n, (prompt, answer) in enumerate([(2, 4), *sizes])]

  def until(count):
    yield from talks[:count]
    raise Stopped

  with pytest.MonkeyPatch.context() as patch:
    small_parts(patch)
    one, other = tmp_path_factory.mktemp("once"), tmp_path_factory.mktemp("again")
    whole(talks, byte_tokenizer, one)
    for stop in stops:
      with pytest.raises(Stopped):
        whole(until(stop), byte_tokenizer, other)
    whole(talks, byte_tokenizer, other)
    assert files(one) == files(other)


def test_any_number_of_processes_writes_the_same_bytes(tmp_path, byte_tokenizer, monkeypatch):
  small_parts(monkeypatch)
  talks = [talk(n, "a" * (n % 5), "b" * (1 + n % 4)) for n in range(40)]
  for workers in (1, 2):
    whole(talks, byte_tokenizer, tmp_path / str(workers), workers=workers)
  assert files(tmp_path / "1") == files(tmp_path / "2") and len(files(tmp_path / "1")) > 6


def test_batches_mix_conversations_with_text(tmp_path, byte_tokenizer):
  text = pack(["words " * 9], byte_tokenizer, seq_len=7, out=tmp_path / "text", eos=EOS)
  talks = whole([talk(n, "ab", "cde") for n in range(4)], byte_tokenizer, tmp_path / "talks")
  loader = Loader([text, talks], batch_size=4, seed=0, weights={0: (1, 1)})
  batch, (corpus, _) = loader.batch(0, np.arange(4)), loader.indices(0, np.arange(4))
  assert sorted(corpus.tolist()) == [0, 0, 1, 1] and loader.segments
  np.testing.assert_array_equal(batch.weight[corpus == 0], np.ones((2, 7)))
  np.testing.assert_array_equal(batch.weight[corpus == 1], [[0, 1, 1, 1, 0, 0, 0]] * 2)


def test_the_manifest_tells_answers_apart(tmp_path, byte_tokenizer):
  # The same text with other answers is another cache.
  one = whole([Document("a:0", "abcdef", ((2, 4),))], byte_tokenizer, tmp_path / "one")
  other = whole([Document("a:0", "abcdef", ((2, 5),))], byte_tokenizer, tmp_path / "other")
  assert one.digest != other.digest
  content = json.loads((tmp_path / "one" / "manifest.json").read_text())
  assert content["dtypes"] == {"tokens": "uint16", "segments": "uint16", "targets": "uint8"}
