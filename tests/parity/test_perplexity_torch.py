"""Perplexities against transformers' torch models and the code that the papers' numbers come from."""

import math

import pytest

from jaxchop.data.sources import Document
from jaxchop.evaluate.perplexity import Protocol, perplexity
from jaxchop.hub.load import load_model, open_checkpoint
from jaxchop.hub.tokenizer import load_tokenizer

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.torch

TEXTS = [f"the layers of the list number {n}, größer than before: {'🙂' * (n % 3)}" for n in range(20)]
DOCUMENTS = [Document(f"a:{n}", text) for n, text in enumerate(TEXTS)]


def gptq(model, ids, window):
  """Non-overlapping windows, mean of their mean losses. Source: GPTQ, llama.py, llama_eval."""
  losses = []
  for start in range(0, len(ids) // window * window, window):
    batch = torch.tensor([ids[start : start + window]])
    with torch.no_grad():
      logits = model(batch).logits[:, :-1]
    losses.append(torch.nn.functional.cross_entropy(logits[0], batch[0, 1:]).double().item())
  return math.exp(sum(losses) / len(losses))


def strided(model, ids, window, stride):
  """Overlapping windows, each scoring what the one before did not see. Source: transformers' guide on perplexity."""
  total, count, done = 0.0, 0, 0
  for start in range(0, len(ids) - window + 1, stride):
    stop = start + window
    target = torch.tensor([ids[start:stop]])
    target[:, : max(done - start, 0)] = -100
    with torch.no_grad():
      loss = model(torch.tensor([ids[start:stop]]), labels=target).loss.double().item()
    scored = int((target[:, 1:] != -100).sum())
    total, count, done = total + loss * scored, count + scored, stop
  return math.exp(total / count)


def before_every(model, ids, window, bos):
  """BOS beside the tokens of each window. Source: shortened-llm, dataset.py, process_data with add_bos_to_every."""
  losses = []
  for start in range(0, len(ids) // window * window, window):
    batch = torch.tensor([[bos, *ids[start : start + window]]])
    with torch.no_grad():
      logits = model(batch).logits[:, :-1]
    losses.append(torch.nn.functional.cross_entropy(logits[0], batch[0, 1:]).double().item())
  return math.exp(sum(losses) / len(losses))


def join(tokenizer, docs):
  return tokenizer("\n\n".join(doc.text for doc in docs), add_special_tokens=False)["input_ids"]


def test_perplexities_of_a_small_model_are_those_of_torch(tiny_folder):
  folder = tiny_folder(seed=3)
  checkpoint = open_checkpoint(str(folder))
  ours, tokenizer = load_model(checkpoint), load_tokenizer(checkpoint)
  theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
  ids, bos = join(tokenizer, DOCUMENTS), tokenizer.bos_token_id
  wanted = {
    Protocol(window=32, stride=32): gptq(theirs, ids, 32),
    Protocol(window=32, stride=32, bos="first"): gptq(theirs, [bos, *ids], 32),
    Protocol(window=32, stride=32, bos="every"): before_every(theirs, ids, 32, bos),
    Protocol(window=32, stride=8): strided(theirs, ids, 32, 8),
  }
  for protocol, value in wanted.items():
    found = perplexity(ours, tokenizer, DOCUMENTS, protocol, batch_size=3)
    assert found.perplexity == pytest.approx(value, rel=1e-5), str(protocol)
