"""Compares what a model folder says with what it holds: config against weights, one spelling against the other."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

from jaxchop.errors import JaxchopError
from jaxchop.hub import hf_rope, names
from jaxchop.hub.facts import Facts, Line, plain
from jaxchop.hub.folder import shown
from jaxchop.hub.hf_config import parse_config
from jaxchop.hub.safetensors import DTYPES

# Settings of one entry a layer; a list of another length stops loaders, or shifts every later layer's setting.
_PER_LAYER = ("layer_types", "mlp_layer_types", "no_rope_layers")
# Lists that may be as long as the source had layers by chance.
_NOT_PER_LAYER = ("architectures", "bos_token_id", "eos_token_id", "pad_token_id")
_TENSORS = "config against tensors"
_ROPE_KEYS = ("rope_theta", "rope_scaling")


def lint(facts: Facts) -> tuple[Line, ...]:
  """Returns one line for each comparison; a line that fails names the file, and the tensor or setting, at fault.

  A config that states no architecture this package knows is the only line: nothing can be compared with it.
  """
  try:
    parse_config(facts.config, facts.where)
  except JaxchopError as error:
    return (Line(name=_TENSORS, ok=False, detail=str(error)),)
  return tuple(_line(name, rule(facts)) for name, rule in _RULES.items())


def wrong_tensors(facts: Facts) -> Iterator[str]:
  """Yields what is wrong with the folder's tensors, as config.json describes them."""
  if facts.layers > len(facts.tensors):
    yield f"config.json: num_hidden_layers is {facts.layers}, but there are {len(facts.tensors)} tensors in all"
    return
  wanted = names.expected(parse_config(facts.config, facts.where), facts.layers)
  for name, stored in facts.tensors.items():
    where = f"tensor {shown(name)} in {stored.file.name}"
    if name not in wanted and name != names.HEAD and not names.ignorable(name):
      yield f"{where}: not part of a Llama of {facts.layers} layers"
    elif name in wanted and stored.shape != wanted[name]:
      yield f"{where}: shape {list(stored.shape)}, config.json asks for {list(wanted[name])}"
  for name in wanted:
    if name not in facts.tensors:
      untied = ", which tie_word_embeddings false asks for" if name == names.HEAD else ""
      yield f"tensor {name} is missing{untied}"


def needless_head(facts: Facts) -> Iterator[str]:
  """Yields that a tied model has a head of its own, which some loaders take and others pass over."""
  if names.HEAD in facts.tensors and facts.config.get("tie_word_embeddings"):
    file = facts.tensors[names.HEAD].file.name
    yield f"tensor {names.HEAD} in {file}: config.json says tie_word_embeddings, so there must be none"


def per_layer_lists(facts: Facts) -> Iterator[str]:
  """Yields the settings whose entries are not one a layer."""
  before = (facts.manifest or {}).get("source", {}).get("layers")
  for path, value in _lists(facts.config):
    key = path.rpartition(".")[2]
    uncut = len(value) == before != facts.layers and key not in _NOT_PER_LAYER
    if len(value) != facts.layers and (key in _PER_LAYER or uncut):
      yield f"config.json: {path} has {len(value)} entries for {facts.layers} layers"


def old_rope(facts: Facts) -> dict[str, Any]:
  """Returns the rotary settings that a reader of the old spelling sees: transformers 4 and what is built on it."""
  return hf_rope.resolve({key: value for key, value in facts.config.items() if key != "rope_parameters"}, facts.where)


def new_rope(facts: Facts) -> dict[str, Any] | None:
  """Returns the rotary settings of the new spelling alone, None where there is none."""
  if not facts.config.get("rope_parameters"):
    return None
  return hf_rope.resolve({key: value for key, value in facts.config.items() if key not in _ROPE_KEYS}, facts.where)


def _rope(facts: Facts) -> Iterator[str]:
  old, new = old_rope(facts), new_rope(facts)
  for key in sorted({*old, *(new or old)}):
    if new is not None and old.get(key) != new.get(key):
      both = f"{plain(old.get(key))} in rope_theta and rope_scaling, {plain(new.get(key))} in rope_parameters"
      yield f"config.json: {key} is {both}"


def _dtype(facts: Facts) -> Iterator[str]:
  new, old = facts.config.get("dtype"), facts.config.get("torch_dtype")
  if new and old and new != old:
    yield f"config.json: dtype is {plain(new)}, torch_dtype {plain(old)}"
  written = (facts.manifest or {}).get("dtype", "mixed")
  for name, stored in facts.tensors.items():
    if written not in ("mixed", DTYPES[stored.dtype].name):
      yield f"tensor {name} in {stored.file.name} is {stored.dtype}, jaxchop.json says {written}"


def _special_tokens(facts: Facts) -> Iterator[str]:
  size = facts.config.get("vocab_size", 0)
  for file, content in (("config.json", facts.config), ("generation_config.json", facts.generation)):
    for key in ("bos_token_id", "eos_token_id"):
      value = content.get(key)
      for token in value if isinstance(value, list) else [] if value is None else [value]:
        if not isinstance(token, int) or not 0 <= token < size:
          yield f"{file}: {key} {plain(token)} is outside a vocabulary of {size}"


def _vocabulary(facts: Facts) -> Iterator[str]:
  size = facts.config.get("vocab_size", 0)
  if facts.top_token is not None and facts.top_token >= size:
    yield f"tokenizer.json has token {facts.top_token}, config.json a vocab_size of {size}"


_RULES: dict[str, Callable[[Facts], Iterator[str]]] = {
  _TENSORS: lambda facts: itertools.chain(wrong_tensors(facts), needless_head(facts)),
  "per-layer settings": per_layer_lists,
  "both RoPE spellings": _rope,
  "dtypes": _dtype,
  "special tokens": _special_tokens,
  "vocabulary": _vocabulary,
}


def _line(name: str, complaints: Iterator[str]) -> Line:
  try:
    found = list(complaints)
  except JaxchopError as error:
    found = [str(error)]
  more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
  return Line(name=name, ok=not found, detail=found[0] + more if found else "agree")


def _lists(value: dict[str, Any], path: str = "") -> Iterator[tuple[str, list[Any]]]:
  for key, inner in value.items():
    if isinstance(inner, list):
      yield path + key, inner
    elif isinstance(inner, dict):
      yield from _lists(inner, f"{path}{key}.")
