"""What one model is worth: what the chosen suites say of it, and how it continues prompts."""

from collections.abc import Collection
from typing import Any

from transformers import PreTrainedTokenizerBase

from jaxchop.config import EvaluateConfig
from jaxchop.data.texts import Texts
from jaxchop.evaluate.protocol import PROTOCOLS
from jaxchop.evaluate.suites import Asked, suites
from jaxchop.model.generate import generate
from jaxchop.model.llama import Llama


def measure(asked: Asked, texts: Texts, config: EvaluateConfig) -> dict[str, Any]:
  """Returns one model's entry of eval.json: each suite's result, perplexities by protocol, continuations."""
  found = {suite.name: suite.run(asked) for suite in suites(config, texts)}
  return entry(found) | {"samples": continuations(asked.model, asked.tokenizer, config, asked.eos)}


def entry(found: dict[str, dict[str, Any]]) -> dict[str, Any]:
  """Returns the results of a model's suites with its perplexities by protocol, and the first one's bits per byte."""
  perplexity, bits = {}, {}
  for name, result in found.items():
    if name in ("perplexity", *PROTOCOLS):
      value, weight = (figure["value"] for figure in result["figures"].values())
      perplexity[result["protocol"]] = value
      bits.setdefault("bits_per_byte", weight)
  return {"perplexity": perplexity, **bits, "suites": found}


def continuations(
  model: Llama, tokenizer: PreTrainedTokenizerBase, config: EvaluateConfig, eos: Collection[int]
) -> list[dict[str, str]]:
  """Returns how the model continues each prompt, greedily: [{"prompt": ..., "continuation": ...}]."""
  ids = [tokenizer.encode(prompt) for prompt in config.prompts]
  new = generate(model, ids, max_new_tokens=config.sample_tokens, eos=eos)
  texts = [str(tokenizer.decode(part, skip_special_tokens=True)) for part in new]
  return [{"prompt": prompt, "continuation": text} for prompt, text in zip(config.prompts, texts, strict=True)]
