"""A GGUF file's tokenizer cuts and joins as the one that was converted."""

import itertools
import json
import pydoc_data.topics

import pytest
import tiny_models
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

from jaxchop.errors import JaxchopError
from jaxchop.hub.gguf_tokenizer import build_tokenizer
from jaxchop.hub.load import open_checkpoint
from jaxchop.hub.tokenizer import eos_ids, load_tokenizer


def test_the_tokenizer_is_the_one_that_was_converted(make, tiny_tokenizer):
  checkpoint = open_checkpoint(make()[0])
  tokenizer = load_tokenizer(checkpoint)
  for text in (tiny_models.TEXT, "1234 äöü\n\n\tx  y", "<|start|>user\nhi<|end|>"):
    assert tokenizer.encode(text) == tiny_tokenizer.encode(text).ids
  assert (
    tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "<|start|>user\nhi<|end|>\n"
  )
  assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 0)
  assert set(checkpoint.assets) >= {
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
  }


def test_an_end_of_turn_ends_a_text_too(make):
  assert eos_ids(open_checkpoint(make(extra=lambda w: w.add_eot_token_id(5))[0])) == (2, 5)


def metadata(tokenizer, **settings):
  vocabulary = tokenizer.get_vocab()
  merges = json.loads(tokenizer.to_str())["model"]["merges"]
  base = {
    "model": "gpt2",
    "tokens": sorted(vocabulary, key=vocabulary.get),
    "merges": [" ".join(pair) for pair in merges],
  }
  return {f"tokenizer.ggml.{key}": value for key, value in (base | settings).items()}


SAMPLES = [
  "I've 12345 layers",
  "  two  spaces\n\n\nlines",
  "x²½ ٣٤ 數字123",
  "don't DON'T",
  "a\r\nb\t",
  "",
  " ",
  "naïve — “quotes”…",
]


@given(st.text() | st.sampled_from(SAMPLES))
def test_smollm_cuts_words_as_its_official_tokenizer_does(tiny_tokenizer, text):
  ours = build_tokenizer(metadata(tiny_tokenizer, pre="smollm"), "x")
  official = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
  wanted = pre_tokenizers.Sequence(official).pre_tokenize_str(text)
  assert ours.pre_tokenizer.pre_tokenize_str(text) == wanted
  assert ours.decode(ours.encode(text).ids) == text


def test_llama3_groups_digits_by_three_and_begins_with_bos(tiny_tokenizer):
  ours = build_tokenizer(metadata(tiny_tokenizer, pre="llama-bpe", bos_token_id=1, token_type=[3] * 3 + [1] * 317), "x")
  assert [word for word, _ in ours.pre_tokenizer.pre_tokenize_str("I'VE 12345")] == ["I", "'VE", "Ġ", "123", "45"]
  assert ours.encode("The list").ids[0] == 1
  assert ours.encode("The list", "the list").ids.count(1) == 2


@pytest.mark.parametrize(
  ("settings", "complaint"),
  [
    ({"model": "bert"}, "tokenizer.ggml.model is bert"),
    ({"pre": "deepseek-llm"}, "tokenizer.ggml.pre is deepseek-llm"),
    ({"token_type": [1]}, "token_type"),
    ({"merges": []}, "merges"),
    ({"merges": ["a b c"]}, "merges"),
    ({"tokens": ["a", "a"]}, "tokens"),
    ({"model": "llama", "scores": [0.0]}, "scores"),
  ],
)
def test_a_tokenizer_that_cannot_be_rebuilt_is_refused_by_key(tiny_tokenizer, settings, complaint):
  with pytest.raises(JaxchopError, match=f"^file.gguf: .*{complaint}"):
    build_tokenizer(metadata(tiny_tokenizer, **settings), "file.gguf")


@pytest.fixture(scope="module")
def pieces():
  """A SentencePiece-like vocabulary: specials, bytes, then pieces with falling scores."""
  words = ["▁", "t", "h", "e", "l", "i", "s", "a", "▁t", "he", "▁the", "▁l", "▁li", "st", "▁list", "is", "▁a", "th"]
  tokens = ["<unk>", "<s>", "</s>", *[f"<0x{byte:02X}>" for byte in range(256)], *words]
  scores = [0.0] * 259 + [-float(rank) for rank in range(len(words))]
  kinds = [2, 3, 3, *[6] * 256, *[1] * len(words)]
  return {
    "model": "llama",
    "tokens": tokens,
    "scores": scores,
    "token_type": kinds,
    "bos_token_id": 1,
    "eos_token_id": 2,
  }


def spm(pieces, **settings):
  return build_tokenizer({f"tokenizer.ggml.{key}": value for key, value in (pieces | settings).items()}, "x")


def test_sentencepiece_joins_the_best_scored_pieces_and_falls_back_to_bytes(pieces):
  tokenizer = spm(pieces)
  assert tokenizer.encode("the list").tokens == ["<s>", "▁the", "▁list"]
  assert tokenizer.encode("aé").tokens == ["<s>", "▁a", "<0xC3>", "<0xA9>"]
  assert spm(pieces, add_bos_token=False, add_eos_token=True).encode("a").tokens == ["▁a", "</s>"]


@given(st.text(alphabet="thelisa é數\n", max_size=30))
def test_sentencepiece_gives_back_the_text(pieces, text):
  for prefix in (True, False):
    tokenizer = spm(pieces, add_space_prefix=prefix)
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def best_first(text, scores):
  """Joins neighbours by the best score of the result, leftmost first, as llama.cpp's llm_tokenizer_spm."""
  symbols = list(text)
  while True:
    joins = [(scores[a + b], -at) for at, (a, b) in enumerate(itertools.pairwise(symbols)) if a + b in scores]
    if not joins:
      return symbols
    at = -max(joins)[1]
    symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]


@given(st.text(alphabet="thelisa ", min_size=1, max_size=30))
def test_sentencepiece_pieces_are_those_of_llama_cpp(pieces, text):
  scores = dict(zip(pieces["tokens"][259:], pieces["scores"][259:], strict=True))
  tokens = spm(pieces, add_bos_token=False).encode(text).tokens
  assert tokens == best_first("▁" + text.replace(" ", "▁"), scores)


@pytest.mark.real
def test_smollm2_s_tokenizer_gives_back_any_text_and_knows_its_special_tokens(smollm2):
  tokenizer = load_tokenizer(open_checkpoint("builtin"))
  text = "\n".join(pydoc_data.topics.topics.values())[:200_000]
  assert tokenizer.decode(tokenizer(text, verbose=False)["input_ids"]) == text
  chat = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False, add_generation_prompt=True)
  assert chat.endswith("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n")
  assert tokenizer.encode(chat).count(1) == 3 and tokenizer.encode(chat).count(2) == 2
