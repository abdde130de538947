"""The rotary settings of a config.json in both spellings, resolved as transformers 5 resolves them.

New spelling: `rope_parameters`. Old one: `rope_theta` beside `rope_scaling`, its kind called `type` or `rope_type`.
Source of the precedence: transformers 5.23, modeling_rope_utils.RotaryEmbeddingConfigMixin.
"""

import math
from typing import Any

from jaxchop.errors import JaxchopError
from jaxchop.hub.folder import shown
from jaxchop.model.config import Rope

# transformers' default where no spelling gives a base.
_THETA = 10_000.0
# Key in the file: field of Rope. Which of them a kind needs, and which it may have.
_FIELDS = {
  "factor": "factor",
  "original_max_position_embeddings": "original_max_positions",
  "low_freq_factor": "low_freq_factor",
  "high_freq_factor": "high_freq_factor",
  "beta_fast": "beta_fast",
  "beta_slow": "beta_slow",
  "attention_factor": "attention_factor",
  "mscale": "mscale",
  "mscale_all_dim": "mscale_all_dim",
  "truncate": "truncate",
}
_NEEDED = {
  "default": (),
  "linear": ("factor",),
  "dynamic": ("factor",),
  "llama3": ("factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"),
  "yarn": ("factor", "original_max_position_embeddings"),
}
_OPTIONAL = {"yarn": ("beta_fast", "beta_slow", "attention_factor", "mscale", "mscale_all_dim", "truncate")}
# Present in checkpoints, without a say in the frequencies.
_NAMES = {"rope_type", "type", "rope_theta", "partial_rotary_factor", "finetuned"}
# A null here means the default.
_NULLABLE = {"beta_fast", "beta_slow", "attention_factor", "mscale", "mscale_all_dim"}


def resolve(config: dict[str, Any], where: str) -> dict[str, Any]:
  """Returns the one set of rotary settings that transformers 5 reads out of both spellings, in the new spelling.

  A non-empty legacy `rope_scaling` replaces `rope_parameters` as a whole; a `rope_theta` inside beats the one beside;
  `rope_type` beats `type`; a top-level `original_max_position_embeddings` beats the one inside.
  """
  key = "rope_scaling" if config.get("rope_scaling") else "rope_parameters"
  inside = config.get(key) or {}
  if not isinstance(inside, dict):
    raise JaxchopError(f"{where}: {key} is {shown(inside)}; it must be an object or null")
  rope = {"rope_theta": config.get("rope_theta", _THETA), "rope_type": inside.get("type", "default"), **inside}
  rope.pop("type", None)
  if "partial_rotary_factor" in config:
    rope.setdefault("partial_rotary_factor", config["partial_rotary_factor"])
  if rope["rope_type"] in ("llama3", "yarn"):
    length = "original_max_position_embeddings"
    if length in config:
      rope[length] = config[length]
    rope.setdefault(length, config.get("max_position_embeddings"))
  return rope


def parse_rope(config: dict[str, Any], where: str) -> Rope:
  """Returns the rotary embedding of a config.json; raises JaxchopError on a kind or a key that is not supported."""
  rope = resolve(config, where)
  kind = rope["rope_type"]
  if not isinstance(kind, str) or kind not in _NEEDED:
    raise JaxchopError(f"{where}: RoPE type {shown(kind)} is not supported; supported are {', '.join(_NEEDED)}")
  for key in rope:
    if key not in _FIELDS and key not in _NAMES:
      raise JaxchopError(f"{where}: RoPE setting {shown(key)} is not supported (RoPE type {kind})")
  if rope.get("partial_rotary_factor") not in (None, 1, 1.0):
    share = rope["partial_rotary_factor"]
    raise JaxchopError(
      f"{where}: partial_rotary_factor is {shown(share)}; only 1 (the whole head rotates) is supported"
    )
  if kind == "yarn" and "factor" in rope and rope["factor"] is None:
    rope["factor"] = _ratio(config, rope, where)
  needed = {key: rope.get(key) for key in _NEEDED[kind]}
  optional = {key: rope[key] for key in _OPTIONAL.get(kind, ()) if key in rope}
  optional = {key: value for key, value in optional.items() if not (value is None and key in _NULLABLE)}
  fields = {_FIELDS[key]: _checked(key, value, kind, where) for key, value in {**needed, **optional}.items()}
  return Rope(kind=kind, theta=float(_checked("rope_theta", rope["rope_theta"], kind, where)), **fields)


def both_spellings(config: dict[str, Any], where: str) -> dict[str, Any]:
  """Returns rope_theta, rope_scaling and rope_parameters that all state the same, the resolved settings.

  transformers 4 and what is built on it read the old spelling only, transformers 5 writes only the new one.
  """
  rope = resolve(config, where)
  scaling = {key: value for key, value in rope.items() if key not in ("rope_theta", "partial_rotary_factor")}
  return {
    "rope_theta": rope["rope_theta"],
    "rope_scaling": None if rope["rope_type"] == "default" else scaling,
    "rope_parameters": rope,
  }


def _ratio(config: dict[str, Any], rope: dict[str, Any], where: str) -> float:
  lengths = config.get("max_position_embeddings"), rope["original_max_position_embeddings"]
  reach, trained = (_checked("original_max_position_embeddings", length, "yarn", where) for length in lengths)
  return reach / trained


def _checked(key: str, value: Any, kind: str, where: str) -> Any:
  """Returns a setting of the right type and range."""
  if key == "truncate":
    good = isinstance(value, bool)
  else:
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    good = number and (value > 0 or (value == 0 and key in ("mscale", "mscale_all_dim")))
  if key == "original_max_position_embeddings":
    good = good and type(value) is int
  if not good:
    raise JaxchopError(f"{where}: RoPE type {kind} has {key} {shown(value)}; expected {_wanted(key)}")
  if key in ("beta_fast", "beta_slow", "factor", "low_freq_factor", "high_freq_factor"):
    return float(value)
  return value


def _wanted(key: str) -> str:
  if key == "truncate":
    return "true or false"
  return "a whole number above 0" if key == "original_max_position_embeddings" else "a number above 0"
