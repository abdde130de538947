"""Every token of every document is predicted once, in the rows of lm-evaluation-harness, and kept by the batch."""

import math
import re

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from jaxchop.data.sources import Document
from jaxchop.errors import JaxchopError, UsageError
from jaxchop.evaluate import documents
from jaxchop.evaluate.answers import Answers
from jaxchop.evaluate.documents import by_document

TEXTS = ["the layers of the list", "größer  als\nzuvor: " * 12, "x"]
DOCUMENTS = [Document(f"a:{n}", text) for n, text in enumerate(TEXTS)]


@given(st.integers(1, 60), st.integers(1, 20))
def test_rows_are_those_of_lm_eval(count, longest):
  ids = list(range(10, 10 + count))
  theirs = [make_disjoint_window(window) for window in get_rolling_token_windows(ids, 0, longest, 1)]
  ours = [*documents._rolling(ids, 0, longest)]
  assert [(list(c), list(d)) for c, d in ours] == [(list(c), list(d)) for c, d in theirs]


def test_the_loss_of_a_document_is_that_of_its_tokens(model, tokenizer):
  found = by_document(model, tokenizer, DOCUMENTS, batch_size=2)
  for text, nll, words, size in zip(TEXTS, found.nll, found.words, found.bytes, strict=True):
    pairs = documents._rolling(tokenizer.encode(text, add_special_tokens=False), tokenizer.bos_token_id, 64)
    total = 0.0
    for context, continuation in pairs:
      row = jnp.array([[*context, *continuation]])
      log_TV = jax.nn.log_softmax(model(row[:, :-1])[0])
      total -= float(log_TV[jnp.arange(len(log_TV)), row[0, 1:]][-len(continuation) :].sum())
    assert nll == pytest.approx(total, rel=1e-5)
    assert (words, size) == (len(re.split(r"\s+", text)), len(text.encode()))
  assert found.word_perplexity == pytest.approx(math.exp(sum(found.nll) / sum(found.words)))
  assert found.bits_per_byte == pytest.approx(math.log2(found.byte_perplexity))
  assert "3 documents" in found.protocol and "64 tokens" in found.protocol


def test_rows_that_stand_are_not_scored_again(model, tokenizer, tmp_path, monkeypatch):
  first = by_document(model, tokenizer, DOCUMENTS, batch_size=2, answers=Answers(tmp_path, "it"))
  monkeypatch.setattr(documents, "score", None)
  assert by_document(model, tokenizer, DOCUMENTS, batch_size=2, answers=Answers(tmp_path, "it")) == first
  with pytest.raises(TypeError):
    by_document(model, tokenizer, DOCUMENTS, batch_size=2, answers=Answers(tmp_path, "another"))


def test_what_cannot_be_measured_is_refused(model, tokenizer, tiny_tokenizer):
  import transformers

  bare = transformers.PreTrainedTokenizerFast(tokenizer_object=tiny_tokenizer)
  with pytest.raises(UsageError, match="neither BOS nor EOS"):
    by_document(model, bare, DOCUMENTS, batch_size=2)
  with pytest.raises(JaxchopError, match="none of them holds text"):
    by_document(model, tokenizer, [Document("a:0", " ")], batch_size=2)
