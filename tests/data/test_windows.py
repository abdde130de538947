"""Windows and sentences of calibration text."""

import numpy as np
import pytest

from jaxchop.data.sources import Document
from jaxchop.data.windows import first_sentences, first_windows
from jaxchop.errors import JaxchopError

DOCUMENTS = [Document("a", "abcd"), Document("b", "efghij\n\nk\n\nlmnopqrstuv")]


def text_of(tokenizer, ids):
  return tokenizer.decode(ids)


def test_windows_are_cut_from_the_documents_each_closed_by_eos(byte_tokenizer):
  eos = byte_tokenizer.eos_token_id
  ids_NT = first_windows(DOCUMENTS, byte_tokenizer, count=2, length=4, eos=eos)
  assert [text_of(byte_tokenizer, row) for row in ids_NT] == ["abcd", "<eos>efg"]


def test_too_few_tokens_are_refused_with_what_would_do(byte_tokenizer):
  with pytest.raises(JaxchopError, match="at most 5"):
    first_windows(DOCUMENTS, byte_tokenizer, count=9, length=5, eos=0)


def test_sentences_are_paragraphs_cut_and_padded_on_the_right(byte_tokenizer):
  ids_NT, real_NT = first_sentences(DOCUMENTS, byte_tokenizer, count=3, length=8, least=4)
  rows = [text_of(byte_tokenizer, ids[real]) for ids, real in zip(ids_NT, real_NT, strict=True)]
  # The single letter is too short to tell anything.
  assert rows == ["abcd", "efghij", "lmnopqrs"]
  np.testing.assert_array_equal(real_NT.sum(axis=1), [4, 6, 8])
  assert not ids_NT[~real_NT].any()


def test_too_few_paragraphs_are_refused(byte_tokenizer):
  with pytest.raises(JaxchopError, match=r"2 paragraphs .* 3 sentences .*merging\.sentences"):
    first_sentences(DOCUMENTS, byte_tokenizer, count=3, length=8, least=6)
