"""Who can load a folder: explicit rules for transformers 4 and 5, vLLM and llama.cpp, each with its reason.

Sources read, July to November 2026: transformers 4.57.6 and 5.23 (configuration_llama, modeling_rope_utils), vLLM
(models/llama.py, layers/rotary_embedding, transformers_utils/config.py) and llama.cpp (conversion/base.py and llama.py,
src/models/llama.cpp, src/llama-context.cpp).
"""

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

from jaxchop.errors import JaxchopError
from jaxchop.hub import hf_rope
from jaxchop.hub.facts import Facts, Line, plain
from jaxchop.hub.hf_config import ARCHITECTURE, parse_config
from jaxchop.hub.lint import needless_head, old_rope, per_layer_lists, wrong_tensors


@dataclasses.dataclass(frozen=True, slots=True)
class Finding:
  """Something a loader meets in the folder."""

  text: str
  # Whether it fails, or computes something else without a word; if not, it is worth knowing and no more.
  stops: bool = True


Rule = Callable[[Facts], Iterator[Finding]]


def targets(facts: Facts) -> tuple[Line, ...]:
  """Returns for each loader whether it loads the folder as the model it is, and why not."""
  return tuple(_judged(name, rules, facts) for name, rules in TARGETS.items())


def _judged(name: str, rules: tuple[Rule, ...], facts: Facts) -> Line:
  try:
    found = [finding for rule in (_architecture, _weights, *rules) for finding in rule(facts)]
  except JaxchopError as error:
    found = [Finding(str(error))]
  stops = [finding.text for finding in found if finding.stops]
  notes = [finding.text for finding in found if not finding.stops]
  return Line(name=name, ok=not stops, detail="; ".join(stops or ["loads", *notes]))


def _architecture(facts: Facts) -> Iterator[Finding]:
  """Every loader picks its implementation by this."""
  parse_config(facts.config, facts.where)
  if ARCHITECTURE not in (facts.config.get("architectures") or ()):
    yield Finding(f'config.json must say architectures ["{ARCHITECTURE}"]')


def _weights(facts: Facts) -> Iterator[Finding]:
  """transformers fills what is missing with random numbers and a warning, the others stop."""
  if wrong := next(wrong_tensors(facts), None):
    yield Finding(wrong)
  if next(needless_head(facts), None):
    yield Finding("lm_head.weight is passed over: the config says tie_word_embeddings", stops=False)


def _old_spelling(facts: Facts) -> Iterator[Finding]:
  """transformers 4 reads rope_theta and rope_scaling, and ignores rope_parameters without a word (vllm #42624)."""
  old, meant = old_rope(facts), hf_rope.resolve(facts.config, facts.where)
  for key in sorted({*old, *meant}):
    if old.get(key) != meant.get(key):
      shown = f"{plain(old.get(key))} where rope_parameters says {plain(meant.get(key))}"
      yield Finding(f"transformers 4 reads rope_theta and rope_scaling only: {key} would be {shown}")
  if meant["rope_type"] == "llama3" and "original_max_position_embeddings" not in (
    facts.config.get("rope_scaling") or {}
  ):
    yield Finding("transformers 4 needs original_max_position_embeddings inside rope_scaling")


def _old_dtype(facts: Facts) -> Iterator[Finding]:
  if facts.config.get("dtype") and not facts.config.get("torch_dtype"):
    yield Finding("dtype without torch_dtype: releases before 4.56 load in float32", stops=False)


def _old_tokenizer(facts: Facts) -> Iterator[Finding]:
  if facts.tokenizer.get("tokenizer_class") == "TokenizersBackend":
    yield Finding("tokenizer_config.json names TokenizersBackend, a class of transformers 5")


# What transformers 5 checks before anything else: the types a setting may have where it is given.
_WHOLE, _REAL, _FLAG = (int,), (float,), (bool,)
_NONE = type(None)
_STRICT: dict[str, tuple[type, ...]] = {
  "vocab_size": _WHOLE,
  "hidden_size": _WHOLE,
  "intermediate_size": _WHOLE,
  "num_hidden_layers": _WHOLE,
  "num_attention_heads": _WHOLE,
  "num_key_value_heads": (int, _NONE),
  "head_dim": (int, _NONE),
  "max_position_embeddings": _WHOLE,
  "pad_token_id": (int, _NONE),
  "bos_token_id": (int, _NONE),
  "eos_token_id": (int, list, _NONE),
  "pretraining_tp": (int, _NONE),
  "initializer_range": _REAL,
  "rms_norm_eps": _REAL,
  "attention_dropout": (int, float, _NONE),
  "use_cache": _FLAG,
  "tie_word_embeddings": _FLAG,
  "attention_bias": _FLAG,
  "mlp_bias": _FLAG,
  "hidden_act": (str,),
}


def _strict_types(facts: Facts) -> Iterator[Finding]:
  for key, kinds in _STRICT.items():
    if key in facts.config and type(facts.config[key]) not in kinds:
      wanted = " or ".join("null" if kind is _NONE else kind.__name__ for kind in kinds)
      yield Finding(f"config.json: {key} is {plain(facts.config[key])}, transformers 5 accepts {wanted} only")


def _heads_divide(facts: Facts) -> Iterator[Finding]:
  """transformers 5 checks this even where head_dim is given and makes it needless."""
  width, heads = facts.config["hidden_size"], facts.config["num_attention_heads"]
  if width % heads:
    yield Finding(f"transformers 5 refuses a hidden_size ({width}) that num_attention_heads ({heads}) does not divide")


def _lists(facts: Facts) -> Iterator[Finding]:
  """transformers 5 raises where layer_types and num_hidden_layers differ."""
  yield from map(Finding, per_layer_lists(facts))


def _no_tokenizer(facts: Facts) -> Iterator[Finding]:
  if not _has_tokenizer(facts):
    yield Finding("no tokenizer in the folder", stops=False)


def _needs_tokenizer(facts: Facts) -> Iterator[Finding]:
  if not _has_tokenizer(facts):
    yield Finding("needs a tokenizer in the folder: tokenizer.json or tokenizer.model")


def _has_tokenizer(facts: Facts) -> bool:
  return bool(facts.files & {"tokenizer.json", "tokenizer.model"})


def _dynamic(facts: Facts) -> Iterator[Finding]:
  """vLLM cancels the factor out (dynamic_ntk_scaling_rope.py), llama.cpp's converter passes over the type."""
  if hf_rope.resolve(facts.config, facts.where)["rope_type"] == "dynamic":
    reach = parse_config(facts.config, facts.where).max_positions
    yield Finding(
      f"the dynamic RoPE scaling is ignored: the same model up to {reach} positions, not beyond", stops=False
    )


def _vllm_heads(facts: Facts) -> Iterator[Finding]:
  width = parse_config(facts.config, facts.where).head_dim
  if width % 8 or width > 256:
    yield Finding(
      f"head_dim {width} is left to its slower attention kernels (multiples of 8 up to 256 are not)", stops=False
    )


def _vllm_dtype(facts: Facts) -> Iterator[Finding]:
  if facts.config.get("dtype", facts.config.get("torch_dtype")) == "float32":
    yield Finding("computes float32 weights in 16 bits unless told --dtype float32", stops=False)


def _vllm_yarn(facts: Facts) -> Iterator[Finding]:
  if _yarn_scale_set(hf_rope.resolve(facts.config, facts.where)):
    yield Finding("releases of before 2026 ignore YaRN's attention_factor and mscale", stops=False)


def _llamacpp_rope(facts: Facts) -> Iterator[Finding]:
  rope = hf_rope.resolve(facts.config, facts.where)
  # convert_hf_to_gguf takes this length from the top level of the config, or 8192, never from the RoPE settings.
  length, taken = (
    rope.get("original_max_position_embeddings"),
    facts.config.get("original_max_position_embeddings", 8192),
  )
  if rope["rope_type"] == "llama3" and length != taken:
    yield Finding(f"its converter takes {taken} for the llama3 original_max_position_embeddings, which is {length}")
  if _yarn_scale_set(rope):
    yield Finding("its YaRN ignores attention_factor and mscale, which this model sets")
  if rope["rope_type"] == "yarn" and rope.get("truncate") is False:
    yield Finding("its YaRN always rounds the ends of the ramp, which this model's truncate false forbids")


def _yarn_scale_set(rope: dict[str, Any]) -> bool:
  """Returns whether YaRN scales attention otherwise than its factor implies."""
  factor, given = rope.get("factor"), rope.get("attention_factor")
  if rope["rope_type"] != "yarn" or not factor:
    return False
  usual = 0.1 * math.log(factor) + 1.0 if factor > 1 else 1.0
  mscales = bool(rope.get("mscale") and rope.get("mscale_all_dim"))
  return mscales if given is None else not math.isclose(given, usual)


def _llamacpp_vocabulary(facts: Facts) -> Iterator[Finding]:
  size = facts.config["vocab_size"]
  if facts.top_token is not None and facts.top_token >= size:
    yield Finding(f"its converter refuses token {facts.top_token} beyond a vocab_size of {size}")
  if "tokenizer.model" not in facts.files:
    yield Finding("its converter must know the tokenizer's pre-tokenizer, which is not checked here", stops=False)


TARGETS: dict[str, tuple[Rule, ...]] = {
  "transformers 4": (_old_spelling, _old_dtype, _old_tokenizer, _no_tokenizer),
  "transformers 5": (_strict_types, _heads_divide, _lists, _no_tokenizer),
  # vLLM 0.24 and later stand on transformers 5, earlier ones also on transformers 4.
  "vLLM": (
    _old_spelling,
    _strict_types,
    _heads_divide,
    _lists,
    _needs_tokenizer,
    _dynamic,
    _vllm_heads,
    _vllm_dtype,
    _vllm_yarn,
  ),
  "llama.cpp": (_needs_tokenizer, _dynamic, _llamacpp_rope, _llamacpp_vocabulary),
}
