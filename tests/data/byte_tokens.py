"""A tokenizer of single bytes, whose ids a reader can check by eye."""

import tokenizers
import transformers


def build(extra: int = 0, **special: str) -> transformers.PreTrainedTokenizerFast:
  """A tokenizer whose 256 first tokens are the bytes of UTF-8, with `extra` unused ones and EOS behind them."""
  letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
  names = [*letters, *(f"<unused {n}>" for n in range(extra)), "<eos>"]
  byte_level = tokenizers.Tokenizer(tokenizers.models.BPE({name: n for n, name in enumerate(names)}, []))
  byte_level.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
  byte_level.decoder = tokenizers.decoders.ByteLevel()
  return transformers.PreTrainedTokenizerFast(tokenizer_object=byte_level, eos_token="<eos>", **special)
