import logging
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxchop.data.sources import Document
from jaxchop.errors import JaxchopError, UsageError
from jaxchop.evaluate.perplexity import Perplexity, Protocol, perplexity, window_nll
from jaxchop.evaluate.protocol import Windows

DOCUMENTS = [Document(f"a:{n}", f"the layers of the list number {n}, größer than before") for n in range(9)]
TEXT = "\n\n".join(document.text for document in DOCUMENTS)


@jax.jit
def log_probabilities(model, ids_BT):
  return jax.nn.log_softmax(model(ids_BT))


def by_hand(model, tokenizer, protocol):
  """Summed nats and tokens of each window, from whole logits."""
  windows = Windows(tokenizer, TEXT, protocol)
  batch = windows.batch(0, len(windows))
  log_BTV = np.asarray(log_probabilities(model, batch.ids), np.float64)
  nll_BT = -np.take_along_axis(log_BTV, batch.target[..., None], axis=2)[..., 0] * batch.weight
  return nll_BT.sum(axis=1), batch.weight.sum(axis=1)


@pytest.mark.parametrize(
  "protocol",
  [
    Protocol(window=16, stride=16),
    Protocol(window=16, stride=5, bos="every"),
    Protocol(window=16, stride=8, bos="first"),
  ],
)
def test_it_is_the_mean_loss_of_the_scored_tokens(model, tokenizer, protocol):
  found = perplexity(model, tokenizer, DOCUMENTS, protocol, batch_size=4)
  nll_N, tokens_N = by_hand(model, tokenizer, protocol)
  # Float32 losses of about 6 nats, summed in another order.
  np.testing.assert_allclose(found.window_nll, nll_N, rtol=1e-5)
  assert found.window_tokens == tuple(tokens_N) and found.tokens == tokens_N.sum()
  assert found.nll == pytest.approx(nll_N.sum() / tokens_N.sum(), rel=1e-5)
  assert found.perplexity == pytest.approx(math.exp(found.nll))


def test_a_model_that_knows_nothing_is_as_perplexed_as_its_vocabulary_is_large(model, tokenizer):
  blank = jax.tree.map(jnp.zeros_like, model)
  protocol = Protocol(window=16, stride=16, bos="every")
  found = perplexity(blank, tokenizer, iter(DOCUMENTS), protocol, batch_size=4)
  assert found.perplexity == pytest.approx(len(tokenizer))
  assert found.bits_per_byte == pytest.approx(math.log2(len(tokenizer)) * found.tokens / found.bytes)
  assert found.nll_error == pytest.approx(0, abs=1e-6)


def test_bytes_are_those_of_the_scored_text(model, tokenizer):
  count = len(tokenizer(TEXT, add_special_tokens=False)["input_ids"])
  found = perplexity(model, tokenizer, DOCUMENTS, Protocol(window=count, stride=count, bos="every"), batch_size=1)
  assert (found.tokens, found.bytes) == (count, len(TEXT.encode()))
  assert found.bits_per_byte == pytest.approx(found.nll * count / math.log(2) / found.bytes)
  assert found.nll_error is None


@pytest.mark.parametrize("batch_size", [1, 4, 1000])
def test_the_batch_size_does_not_matter_and_one_program_is_compiled(model, tokenizer, batch_size):
  protocol = Protocol(window=16, stride=16)
  jax.clear_caches()
  found = perplexity(model, tokenizer, DOCUMENTS, protocol, batch_size=batch_size)
  assert window_nll.compiled == 1
  np.testing.assert_allclose(found.window_nll, by_hand(model, tokenizer, protocol)[0], rtol=1e-5)


def test_the_error_is_that_of_a_mean_over_windows(model, tokenizer):
  found = perplexity(model, tokenizer, DOCUMENTS, Protocol(window=16, stride=16), batch_size=4)
  nll_N = np.array(found.window_nll) / found.window_tokens
  assert found.nll_error == pytest.approx(nll_N.std(ddof=1) / math.sqrt(len(nll_N)))


def test_a_number_is_printed_with_its_protocol(model, tokenizer):
  found = perplexity(model, tokenizer, DOCUMENTS, Protocol(window=16, stride=16, max_windows=2), batch_size=4)
  assert str(found) == f"{found.perplexity:.4g} ({found.protocol})" and "first 2 windows" in str(found)
  assert len(found.window_nll) == 2 and isinstance(found, Perplexity)


def test_a_window_longer_than_the_model_supports_is_warned_of(model, tokenizer, caplog):
  with caplog.at_level(logging.WARNING, "jaxchop"):
    perplexity(model, tokenizer, DOCUMENTS, Protocol(window=64, stride=64), batch_size=4)
    assert not caplog.records
    perplexity(model, tokenizer, DOCUMENTS, Protocol(window=65, stride=65), batch_size=4)
  assert "window 65: longer than the 64 positions the model supports" in caplog.text


def test_broken_weights_are_named(model, tokenizer):
  broken = jax.tree.map(lambda leaf: leaf.at[0].set(jnp.nan), model)
  with pytest.raises(JaxchopError, match="the loss of window 0 of 3 is not finite"):
    perplexity(broken, tokenizer, DOCUMENTS, Protocol(window=16, stride=16, max_windows=3), batch_size=2)


def test_the_tokenizer_of_a_larger_model_is_refused(model, tokenizer):
  larger = type(tokenizer)(tokenizer_object=type(tokenizer._tokenizer).from_str(tokenizer._tokenizer.to_str()))
  larger.add_tokens(["the layers"])
  with pytest.raises(JaxchopError, match="token 320 is outside the model's vocabulary of 320"):
    perplexity(model, larger, DOCUMENTS, Protocol(window=16, stride=16), batch_size=2)


def test_an_empty_batch_is_refused(model, tokenizer):
  with pytest.raises(UsageError, match="batch size is 0"):
    perplexity(model, tokenizer, DOCUMENTS, Protocol(window=16, stride=16), batch_size=0)
