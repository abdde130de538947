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
_ROLES = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}


def special_ids(metadata: Mapping[str, Any], where: str) -> dict[str, Any]:
  """Returns bos_token_id, eos_token_id and pad_token_id as a config.json has them; several ends become a list."""
  ids = _ids(metadata, where)
  ends = list(dict.fromkeys(ids[key] for key in ("eos", "eot", "eom") if key in ids))
  end = ends if len(ends) > 1 else next(iter(ends), None)
  found = {"bos_token_id": ids.get("bos"), "eos_token_id": end, "pad_token_id": ids.get("padding")}
  return {key: value for key, value in found.items() if value is not None}


def tokenizer_assets(metadata: Mapping[str, Any], where: str) -> dict[str, bytes]:
  """Returns {file name: content} of the tokenizer, its chat template and the generation settings.

  Raises JaxchopError, naming the key, where the metadata does not say how to cut text as the model's makers did.
  """
  tokenizer, ids = build_tokenizer(metadata, where), _ids(metadata, where)
  roles = {role: tokenizer.id_to_token(ids[key]) for role, key in _ROLES.items() if key in ids}
  config = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "model_max_length": metadata.get("llama.context_length"),
    "clean_up_tokenization_spaces": False,
    **roles,
  }
  template = metadata.get("tokenizer.chat_template")
  if template is not None and not isinstance(template, str):
    raise JaxchopError(f"{where}: tokenizer.chat_template is no text; the file is broken")
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
  kind = metadata.get("tokenizer.ggml.model")
  if kind not in ("gpt2", "llama"):
    known = "supported are gpt2 (BPE) and llama (SentencePiece)"
    raise JaxchopError(f"{where}: tokenizer.ggml.model is {shown(kind)}; {known}")
  tokens = _list(metadata, "tokens", str, where)
  if len(set(tokens)) < len(tokens):
    raise JaxchopError(f"{where}: tokenizer.ggml.tokens names a token twice; the file is broken")
  tokenizer = (_byte_level if kind == "gpt2" else _sentencepiece)(metadata, tokens, where)
  if "tokenizer.ggml.token_type" in metadata:
    kinds = list(zip(tokens, _list(metadata, "token_type", int, where, len(tokens)), strict=True))
    special = [token for token, type_ in kinds if type_ in (_CONTROL, _UNKNOWN)]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    whole = [token for token, type_ in kinds if type_ == _USER_DEFINED]
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in whole])
  _add_ends(tokenizer, metadata, where, by_default=kind == "llama" or _words(metadata, where) == "llama-bpe")
  return tokenizer


def _byte_level(metadata: Mapping[str, Any], tokens: list[str], where: str) -> Tokenizer:
  words = _words(metadata, where)
  vocabulary = {token: id_ for id_, token in enumerate(tokens)}
  merges = [(left, right) for left, _, right in (m.partition(" ") for m in _list(metadata, "merges", str, where))]
  for left, right in merges:
    if not {left, right, left + right} <= vocabulary.keys():
      pair = shown(f"{left} {right}")
      raise JaxchopError(f"{where}: tokenizer.ggml.merges joins {pair}, not all in the vocabulary; the file is broken")
  tokenizer = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=words == "llama-bpe"))
  splits = [pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in _WORDS[words]]
  to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
  tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splits, to_bytes])
  tokenizer.decoder = decoders.ByteLevel()
  return tokenizer


def _words(metadata: Mapping[str, Any], where: str) -> str:
  name = metadata.get("tokenizer.ggml.pre", "default")
  name = _SYNONYMS.get(name, name) if isinstance(name, str) else name
  if not isinstance(name, str) or name not in _WORDS:
    known = ", ".join([*_WORDS, *_SYNONYMS])
    raise JaxchopError(f"{where}: tokenizer.ggml.pre is {shown(name)}, which is not supported ({known} are)")
  return name


def _sentencepiece(metadata: Mapping[str, Any], tokens: list[str], where: str) -> Tokenizer:
  scores = _list(metadata, "scores", float, where, len(tokens))
  vocabulary = {token: id_ for id_, token in enumerate(tokens)}
  unknown = tokens[_ids(metadata, where).get("unknown", 0)]
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
    cuts.sort(key=lambda cut: (vocabulary[cut[0]], vocabulary[cut[1]]))
    found += [(score, left, right) for left, right in cuts]
  found.sort(key=lambda item: (item[0], len(item[1]), len(item[2])), reverse=True)
  return [(left, right) for _, left, right in found]


def _add_ends(tokenizer: Tokenizer, metadata: Mapping[str, Any], where: str, *, by_default: bool) -> None:
  """Begins each text with BOS, and ends it with EOS, where the model was trained so."""
  ids = _ids(metadata, where)
  begins = metadata.get("tokenizer.ggml.add_bos_token", by_default) and "bos" in ids
  ends = metadata.get("tokenizer.ggml.add_eos_token", False) and "eos" in ids
  before = [str(tokenizer.id_to_token(ids["bos"]))] if begins else []
  after = [str(tokenizer.id_to_token(ids["eos"]))] if ends else []
  if before or after:
    tokenizer.post_processor = processors.TemplateProcessing(
      single=[*before, "$A", *after],
      pair=[*before, "$A", *after, *[f"{token}:1" for token in before], "$B:1", *[f"{token}:1" for token in after]],
      special_tokens=[(token, tokenizer.token_to_id(token)) for token in {*before, *after}],
    )


def _ids(metadata: Mapping[str, Any], where: str) -> dict[str, int]:
  """Returns {role: token id} of the special tokens that the metadata names."""
  roles = ("bos", "eos", "eot", "eom", "unknown", "padding")
  ids = {role: metadata.get(f"tokenizer.ggml.{role}_token_id") for role in roles}
  tokens = metadata.get("tokenizer.ggml.tokens")
  vocabulary = len(tokens) if isinstance(tokens, list) else 0
  for role, id_ in ids.items():
    if id_ is not None and not (type(id_) is int and 0 <= id_ < vocabulary):
      key = f"tokenizer.ggml.{role}_token_id"
      raise JaxchopError(f"{where}: {key} is {shown(id_)}; the vocabulary has {vocabulary} tokens")
  return {role: id_ for role, id_ in ids.items() if id_ is not None}


def _list(metadata: Mapping[str, Any], key: str, kind: type, where: str, count: int | None = None) -> list[Any]:
  value = metadata.get(f"tokenizer.ggml.{key}")
  if not isinstance(value, list) or not value or not all(isinstance(item, kind) for item in value):
    raise JaxchopError(f"{where}: tokenizer.ggml.{key} is missing or of the wrong kind; the file is broken")
  if count is not None and len(value) != count:
    raise JaxchopError(f"{where}: tokenizer.ggml.{key} has {len(value)} entries for {count} tokens; the file is broken")
  return value


def _json(value: Any) -> str:
  return json.dumps(value, indent=2, ensure_ascii=False) + "\n"
