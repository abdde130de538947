"""What one model is worth: held-out perplexity with its protocol, what it can still do, how it continues prompts."""

from collections.abc import Collection, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from jaxchop.config import EvaluateConfig
from jaxchop.data.sources import Document
from jaxchop.evaluate.capability import capability
from jaxchop.evaluate.perplexity import Protocol, perplexity
from jaxchop.model.generate import generate
from jaxchop.model.llama import Llama


def measure(
  model: Llama,
  tokenizer: PreTrainedTokenizerBase,
  held_out: Sequence[Document],
  config: EvaluateConfig,
  *,
  eos: Collection[int],
  title: str,
) -> dict[str, Any]:
  """Returns one model's entry of eval.json: perplexity by protocol, bits per byte, capability, continuations."""
  protocol = Protocol(window=config.window, stride=config.stride, bos=config.bos, max_windows=config.max_windows)
  found = perplexity(model, tokenizer, held_out, protocol, batch_size=config.batch_size, title=title)
  probed = {}
  if items := config.probe_items:
    able = capability(model, tokenizer, items=items, eos=eos, title=f"{title}: what it can do")
    probed = {"capability": able.to_json()}
  return {
    "perplexity": {str(protocol): found.perplexity},
    "nll": found.nll,
    "nll_error": found.nll_error,
    "bits_per_byte": found.bits_per_byte,
    "tokens": found.tokens,
    "window_nll": list(found.window_nll),
    "window_tokens": list(found.window_tokens),
    **probed,
    "samples": continuations(model, tokenizer, config.prompts, config.sample_tokens, eos),
  }


def continuations(
  model: Llama, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], tokens: int, eos: Collection[int]
) -> list[dict[str, str]]:
  """Returns how the model continues each prompt, greedily: [{"prompt": ..., "continuation": ...}]."""
  ids = [tokenizer.encode(prompt) for prompt in prompts]
  new = generate(model, ids, max_new_tokens=tokens, eos=eos)
  texts = [str(tokenizer.decode(part, skip_special_tokens=True)) for part in new]
  return [{"prompt": prompt, "continuation": text} for prompt, text in zip(prompts, texts, strict=True)]
