import jax
import pytest
import transformers
from flax import nnx
from tokenizers import Tokenizer

from jaxchop.model.config import LlamaConfig
from jaxchop.model.llama import Llama


@pytest.fixture(scope="session")
def tokenizer(tiny_tokenizer: Tokenizer) -> transformers.PreTrainedTokenizerFast:
  return transformers.PreTrainedTokenizerFast(
    tokenizer_object=tiny_tokenizer, bos_token="<|start|>", eos_token="<|end|>"
  )


@pytest.fixture(scope="session")
def model(tokenizer: transformers.PreTrainedTokenizerFast) -> Llama:
  config = LlamaConfig(
    vocab_size=len(tokenizer),
    width=16,
    mlp_width=24,
    heads=2,
    kv_heads=1,
    head_dim=8,
    norm_eps=1e-5,
    max_positions=64,
  )
  return jax.jit(lambda: Llama(config, 2, rngs=nnx.Rngs(0)))()
