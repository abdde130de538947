"""The real SmolLM2 in both libraries: transformers reads the GGUF with its own code, not with ours."""

import pytest

PROMPTS = (
  "The history of the lighthouse on the northern cape begins with a storm.",
  "def fibonacci(n):\n  if n < 2:\n    return n\n",
  "Water boils at a lower temperature on a mountain because",
)


@pytest.fixture(scope="session")
def real(smollm2):
  """Returns transformers' model, ours, and the prompts' ids."""
  import torch_llama

  from jaxchop.hub.load import load_model, open_checkpoint
  from jaxchop.hub.tokenizer import load_tokenizer

  checkpoint = open_checkpoint(str(smollm2))
  tokenizer = load_tokenizer(checkpoint)
  prompts = [tokenizer.encode(prompt) for prompt in PROMPTS]
  return torch_llama.from_gguf(smollm2), load_model(checkpoint), prompts
