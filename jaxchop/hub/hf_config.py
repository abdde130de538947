"""config.json of the Llama family: parsed without silent defaults, and cut when layers go."""

import math
from collections.abc import Sequence
from typing import Any

from jaxchop.errors import JaxchopError
from jaxchop.hub.folder import shown
from jaxchop.hub.hf_rope import both_spellings, parse_rope
from jaxchop.hub.names import checked_keep
from jaxchop.model.config import LlamaConfig

ARCHITECTURE = "LlamaForCausalLM"
# LLaMAForCausalLM: how the first conversions of 2023 spelled it.
_ARCHITECTURES = {ARCHITECTURE, "LLaMAForCausalLM"}
# Settings that would change the function if they were on, and the values that leave it alone.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
  "alibi": (False,),
  "attention_multiplier": (1,),
  "attn_logit_softcapping": (),
  "clip_qkv": (),
  "embedding_multiplier": (1,),
  "final_logit_softcapping": (),
  "logits_scaling": (1,),
  "num_experts": (0, 1),
  "num_local_experts": (0, 1),
  "per_layer_config": ({},),
  "qk_layernorm": (False,),
  "qk_norm": (False,),
  "residual_multiplier": (1,),
  "rope_interleaved": (False,),
  "use_qk_norm": (False,),
}
_NO_FULL_ATTENTION = "only full attention in every layer is supported"


def layer_count(config: dict[str, Any], where: str = "config.json") -> int:
  """Returns num_hidden_layers."""
  return _whole(config, "num_hidden_layers", where)


def parse_config(config: dict[str, Any], where: str) -> LlamaConfig:
  """Returns the architecture that a config.json states, as transformers 5 reads it.

  `where` names the file in errors. Raises JaxchopError, naming the setting, on anything this package does not compute.
  """
  _check_family(config, where)
  _check_attention(config, where)
  _check_unsupported(config, where)
  layer_count(config, where)
  width, heads = _whole(config, "hidden_size", where), _whole(config, "num_attention_heads", where)
  if config.get("head_dim") is None and width % heads:
    raise JaxchopError(
      f"{where}: hidden_size {width} does not divide by num_attention_heads {heads} and head_dim is missing"
    )
  try:
    return LlamaConfig(
      vocab_size=_whole(config, "vocab_size", where),
      width=width,
      mlp_width=_whole(config, "intermediate_size", where),
      heads=heads,
      kv_heads=_whole(config, "num_key_value_heads", where, heads),
      head_dim=_whole(config, "head_dim", where, width // heads),
      norm_eps=_epsilon(config, where),
      max_positions=_whole(config, "max_position_embeddings", where, 2048),
      rope=parse_rope(config, where),
      tied=_flag(config, "tie_word_embeddings", where),
      attention_bias=_flag(config, "attention_bias", where),
      mlp_bias=_flag(config, "mlp_bias", where),
    )
  except ValueError as error:
    raise JaxchopError(f"{where}: {error}") from error


def _check_family(config: dict[str, Any], where: str) -> None:
  kind, architectures = config.get("model_type"), config.get("architectures") or [ARCHITECTURE]
  if kind != "llama":
    raise JaxchopError(f"{where}: model_type is {shown(kind)}; only the Llama family (model_type llama) is supported")
  if not isinstance(architectures, list) or not any(str(name) in _ARCHITECTURES for name in architectures):
    raise JaxchopError(f"{where}: architectures is {shown(architectures)}; only {ARCHITECTURE} is supported")


def _check_attention(config: dict[str, Any], where: str) -> None:
  if config.get("sliding_window") is not None and config.get("use_sliding_window") is not False:
    window = shown(config["sliding_window"])
    raise JaxchopError(f"{where}: sliding_window is {window}; {_NO_FULL_ATTENTION}")
  for key in ("layer_types", "no_rope_layers"):
    if not isinstance(config.get(key) or [], list):
      raise JaxchopError(f"{where}: {key} is {shown(config[key])}; expected a list")
  if other := [kind for kind in config.get("layer_types") or () if kind != "full_attention"]:
    raise JaxchopError(f"{where}: layer_types names {shown(other[0])}; {_NO_FULL_ATTENTION}")
  if not all(config.get("no_rope_layers") or ()):
    raise JaxchopError(f"{where}: no_rope_layers switches RoPE off in some layers; that is not supported")


def _check_unsupported(config: dict[str, Any], where: str) -> None:
  if config.get("quantization_config") is not None:
    raise JaxchopError(
      f"{where}: quantization_config says that the weights are quantised; name the unquantised model it was made from, "
      f"or dequantise it first (transformers: model.dequantize().save_pretrained(OUT))"
    )
  if config.get("hidden_act", "silu") not in ("silu", "swish"):
    raise JaxchopError(f"{where}: hidden_act is {shown(config['hidden_act'])}; only silu is supported")
  for key, neutral in _NEUTRAL.items():
    if config.get(key) is not None and config[key] not in neutral:
      raise JaxchopError(f"{where}: {key} is {shown(config[key])}; that setting is not supported")


def _whole(config: dict[str, Any], key: str, where: str, default: int | None = None) -> int:
  value = config.get(key, default)
  value = default if value is None else value
  if value is None:
    raise JaxchopError(f"{where}: {key} is missing")
  if type(value) is not int or not 0 < value < 2**31:
    raise JaxchopError(f"{where}: {key} is {shown(value)}; expected a whole number above 0")
  return value


def _flag(config: dict[str, Any], key: str, where: str) -> bool:
  value = config.get(key, False)
  if not isinstance(value, bool):
    raise JaxchopError(f"{where}: {key} is {shown(value)}; expected true or false")
  return value


def _epsilon(config: dict[str, Any], where: str) -> float:
  value = config.get("rms_norm_eps", 1e-6)
  if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
    raise JaxchopError(f"{where}: rms_norm_eps is {shown(value)}; expected a number from 0")
  return float(value)


# Lists whose length may equal the number of layers by chance.
_NOT_PER_LAYER = {"architectures", "bos_token_id", "eos_token_id", "pad_token_id", "id2label", "label2id"}
# Lists that hold layer indices, and maps from layer indices that need not name every layer.
_INDEX_LISTS = {
  "mlp_only_layers",
  "cross_attention_layers",
  "full_attn_idxs",
  "attn_layer_indices",
  "layers_to_transform",
}
_LAYER_MAPS = {"per_layer_config", "pruned_heads"}
# How many of the first layers are of one kind.
_LEADING = {"max_window_layers", "first_k_dense_replace"}
_LEFT_OUT = {"_name_or_path", "auto_map", "quantization_config"}


def cut_config(
  config: dict[str, Any], keep: Sequence[int], *, tied: bool | None = None, dtype: str | None = None
) -> dict[str, Any]:
  """Returns the config.json of the same model with only the layers `keep` (0-based, in this order).

  Per-layer lists and maps follow the layers; RoPE and dtype are written in both spellings, each derived from one value
  (`dtype`, as "bfloat16", or what the source says); `_name_or_path`, `auto_map` and `quantization_config` are left
  out. Every other key stays as it is. Raises UsageError on layers that the model does not have.
  """
  layers = layer_count(config)
  keep = checked_keep(keep, layers)
  cut = {key: _gather(key, value, layers, keep) for key, value in config.items() if key not in _LEFT_OUT}
  cut |= {"architectures": [ARCHITECTURE], "num_hidden_layers": len(keep)} | both_spellings(config, "config.json")
  dtype = dtype or config.get("dtype") or config.get("torch_dtype")
  if dtype is not None:
    cut |= {"dtype": dtype, "torch_dtype": dtype}
  if tied is not None:
    cut["tie_word_embeddings"] = tied
  return cut


def _gather(key: str, value: Any, layers: int, keep: Sequence[int]) -> Any:
  """Returns a setting of the kept layers: gathered if it is one entry a layer, else as it is."""
  if key in _NOT_PER_LAYER or isinstance(value, str):
    return value
  if key in _LEADING and type(value) is int:
    return sum(layer < value for layer in keep)
  if key in _INDEX_LISTS and isinstance(value, list):
    return [new for new, old in enumerate(keep) if old in value]
  if isinstance(value, list):
    return [value[layer] for layer in keep] if len(value) == layers else value
  if isinstance(value, dict):
    if key in _LAYER_MAPS or set(value) == {str(layer) for layer in range(layers)}:
      return {str(new): value[str(old)] for new, old in enumerate(keep) if str(old) in value}
    return {inner: _gather(inner, item, layers, keep) for inner, item in value.items()}
  return value
