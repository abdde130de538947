"""The tokenizer in a GGUF file's metadata, as the files of a Hugging Face folder.

transformers reads GGUF through torch, so the `tokenizers` library is used directly. Two kinds occur with Llama models:
byte-level BPE (`gpt2`: SmolLM, Llama 3) and SentencePiece pieces with scores (`llama`: Llama 1 and 2, TinyLlama).
Source: llama.cpp, src/llama-vocab.cpp; transformers, convert_slow_tokenizer.py (LlamaConverter).
"""

import json
from collections.abc import Mapping
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from jaxchop.errors import JaxchopError
from jaxchop.hub.folder import shown

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
  r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Patterns that cut a text into words before merging, one after the other, by llama.cpp's name for the set.
_WORDS: dict[str, list[str]] = {
  "default": [r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"],
  "gpt-2": [_GPT2],
  "smollm": [r"\p{N}", _GPT2],
  "llama-bpe": [_LLAMA3],
}
_SYNONYMS = {"llama3": "llama-bpe", "llama-v3": "llama-bpe", "smaug-bpe": "llama-bpe"}
_ROLES = {"bos_token": "bos_token_id", "eos_token": "eos_token_id", "unk_token": "unknown_token_id"}
_ROLES |= {"pad_token": "padding_token_id"}


def special_ids(metadata: Mapping[str, Any], where: str) -> dict[str, Any]:
  """Returns bos_token_id, eos_token_id and pad_token_id as a config.json has them; several ends become a list."""
  vocabulary = len(metadata.get("tokenizer.ggml.tokens", ()))
  ids = {key: metadata.get(f"tokenizer.ggml.{key}_token_id") for key in ("bos", "eos", "padding", "eot", "eom")}
  for key, value in ids.items():
    if value is not None and not (type(value) is int and 0 <= value < vocabulary):
      raise JaxchopError(
        f"{where}: tokenizer.ggml.{key}_token_id is {shown(value)}; the vocabulary has {vocabulary} tokens"
      )
  ends = list(dict.fromkeys(ids[key] for key in ("eos", "eot", "eom") if ids[key] is not None))
  found = {
    "bos_token_id": ids["bos"],
    "eos_token_id": ends if len(ends) > 1 else ids["eos"],
    "pad_token_id": ids["padding"],
  }
  return {key: value for key, value in found.items() if value is not None}


def tokenizer_assets(metadata: Mapping[str, Any], where: str) -> dict[str, bytes]:
  """Returns {file name: content} of the tokenizer, its chat template and the generation settings.

  Raises JaxchopError, naming the key, where the metadata does not say how to cut text as the model's makers did.
  """
  tokenizer = build_tokenizer(metadata, where)
  roles = {role: tokenizer.id_to_token(id_) for role, id_ in _roles(metadata).items()}
  config = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "model_max_length": metadata.get("llama.context_length"),
    "clean_up_tokenization_spaces": False,
    **roles,
  }
  template = metadata.get("tokenizer.chat_template")
  files = {
    "tokenizer.json": tokenizer.to_str(pretty=True),
    "tokenizer_config.json": _json(config | ({"chat_template": template} if template else {})),
    "special_tokens_map.json": _json(roles),
    "generation_config.json": _json({"_from_model_config": True} | special_ids(metadata, where)),
  }
  if template:
    files["chat_template.jinja"] = template
  return {name: text.encode("utf-8") for name, text in files.items()}


def build_tokenizer(metadata: Mapping[str, Any], where: str) -> Tokenizer:
  """Returns the tokenizer that the metadata describes; special tokens are single ids wherever they stand in a text."""
  kind, tokens = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.tokens")
  if kind not in ("gpt2", "llama"):
    raise JaxchopError(
      f"{where}: tokenizer.ggml.model is {shown(kind)}; supported are gpt2 (BPE) and llama (SentencePiece)"
    )
  if not isinstance(tokens, list) or len(set(tokens)) < len(tokens):
    raise JaxchopError(f"{where}: tokenizer.ggml.tokens is missing or names a token twice; the file is broken")
  kinds = metadata.get("tokenizer.ggml.token_type", [_NORMAL] * len(tokens))
  if not isinstance(kinds, list) or len(kinds) != len(tokens):
    raise JaxchopError(
      f"{where}: tokenizer.ggml.token_type does not name each of the {len(tokens)} tokens; the file is broken"
    )
  tokenizer = (_byte_level if kind == "gpt2" else _sentencepiece)(metadata, tokens, where)
  for token, type_ in zip(tokens, kinds, strict=True):
    # One at a time keeps the vocabulary's ids: each is already in the model.
    if type_ in (_CONTROL, _UNKNOWN):
      tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False)])
    elif type_ == _USER_DEFINED:
      tokenizer.add_tokens([AddedToken(token, special=False, normalized=False)])
  _add_ends(tokenizer, metadata, by_default=kind == "llama" or _words(metadata, where) == "llama-bpe")
  return tokenizer


def _byte_level(metadata: Mapping[str, Any], tokens: list[str], where: str) -> Tokenizer:
  words = _words(metadata, where)
  vocabulary = {token: id_ for id_, token in enumerate(tokens)}
  merges = [tuple(merge.split(" ")) for merge in metadata.get("tokenizer.ggml.merges", ())]
  if not merges or any(len(pair) != 2 or "".join(pair) not in vocabulary for pair in merges):
    raise JaxchopError(
      f"{where}: tokenizer.ggml.merges is missing or makes pieces outside the vocabulary; the file is broken"
    )
  tokenizer = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=words == "llama-bpe"))
  splits = [pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in _WORDS[words]]
  tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
    [*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
  )
  tokenizer.decoder = decoders.ByteLevel()
  return tokenizer


def _words(metadata: Mapping[str, Any], where: str) -> str:
  name = metadata.get("tokenizer.ggml.pre", "default")
  name = _SYNONYMS.get(name, name)
  if name not in _WORDS:
    known = ", ".join([*_WORDS, *_SYNONYMS])
    raise JaxchopError(f"{where}: tokenizer.ggml.pre is {shown(name)}, which is not supported ({known} are)")
  return name


def _sentencepiece(metadata: Mapping[str, Any], tokens: list[str], where: str) -> Tokenizer:
  scores = metadata.get("tokenizer.ggml.scores")
  if not isinstance(scores, list) or len(scores) != len(tokens):
    raise JaxchopError(
      f"{where}: tokenizer.ggml.scores does not name each of the {len(tokens)} tokens; the file is broken"
    )
  vocabulary = {token: id_ for id_, token in enumerate(tokens)}
  unknown = tokens[metadata.get("tokenizer.ggml.unknown_token_id", 0)]
  merges = _merges(vocabulary, scores)
  tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))
  prefix = metadata.get("tokenizer.ggml.add_space_prefix", True)
  space = normalizers.Replace(" ", "▁")
  tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), space] if prefix else [space])
  undo = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
  tokenizer.decoder = decoders.Sequence([*undo, decoders.Strip(" ", 1, 0)] if prefix else undo)
  return tokenizer


def _merges(vocabulary: Mapping[str, int], scores: list[float]) -> list[tuple[str, str]]:
  """Every way to join two pieces into a third, best score of the result first, as SentencePiece would join them."""
  found = []
  for whole, score in zip(vocabulary, scores, strict=True):
    cuts = [(whole[:at], whole[at:]) for at in range(1, len(whole))]
    cuts = [(left, right) for left, right in cuts if left in vocabulary and right in vocabulary]
    found += [
      (score, left, right) for left, right in sorted(cuts, key=lambda cut: (vocabulary[cut[0]], vocabulary[cut[1]]))
    ]
  found.sort(key=lambda item: (item[0], len(item[1]), len(item[2])), reverse=True)
  return [(left, right) for _, left, right in found]


def _roles(metadata: Mapping[str, Any]) -> dict[str, int]:
  ids = {role: metadata.get(f"tokenizer.ggml.{key}") for role, key in _ROLES.items()}
  return {role: id_ for role, id_ in ids.items() if id_ is not None}


def _add_ends(tokenizer: Tokenizer, metadata: Mapping[str, Any], *, by_default: bool) -> None:
  """Begins each text with BOS, and ends it with EOS, where the model was trained so."""
  roles = _roles(metadata)
  begins = metadata.get("tokenizer.ggml.add_bos_token", by_default) and "bos_token" in roles
  ends = metadata.get("tokenizer.ggml.add_eos_token", False) and "eos_token" in roles
  before = [str(tokenizer.id_to_token(roles["bos_token"]))] if begins else []
  after = [str(tokenizer.id_to_token(roles["eos_token"]))] if ends else []
  if before or after:
    tokenizer.post_processor = processors.TemplateProcessing(
      single=[*before, "$A", *after],
      pair=[*before, "$A", *after, *[f"{token}:1" for token in before], "$B:1", *[f"{token}:1" for token in after]],
      special_tokens=[(token, tokenizer.token_to_id(token)) for token in {*before, *after}],
    )


def _json(value: Any) -> str:
  return json.dumps(value, indent=2, ensure_ascii=False) + "\n"
