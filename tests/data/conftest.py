import pytest
import transformers
from byte_tokens import build


@pytest.fixture(scope="session")
def byte_tokenizer() -> transformers.PreTrainedTokenizerFast:
  return build()


@pytest.fixture(scope="session")
def wide_tokenizer() -> transformers.PreTrainedTokenizerFast:
  """Its EOS does not fit in 16 bits."""
  return build(extra=1 << 16)
