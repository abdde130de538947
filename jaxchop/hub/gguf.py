"""A GGUF file as a checkpoint: its metadata told as a config.json, its tensors by their Hugging Face names.

llama.cpp stores the rows of q and k permuted (its rotation pairs neighbours, Hugging Face's pairs halves); that is
undone here. Quantised weights are dequantised to float32, exactly; F32, F16 and BF16 stay what they are.
"""

import functools
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxchop.errors import JaxchopError
from jaxchop.hub.checkpoint import Checkpoint, Tensor, checked_tensors
from jaxchop.hub.folder import shown
from jaxchop.hub.gguf_file import GgufFile, Packed, read_gguf, unpack
from jaxchop.hub.gguf_rope import rope_settings
from jaxchop.hub.gguf_tokenizer import special_ids, tokenizer_assets
from jaxchop.hub.hf_config import ARCHITECTURE, cut_config, layer_count, parse_config
from jaxchop.hub.safetensors import Index, bounds

# GGUF name: Hugging Face name. `*` stands for the layer's index.
_NAMES = {
  "token_embd": "model.embed_tokens",
  "output_norm": "model.norm",
  "output": "lm_head",
  "blk.*.attn_norm": "model.layers.*.input_layernorm",
  "blk.*.attn_q": "model.layers.*.self_attn.q_proj",
  "blk.*.attn_k": "model.layers.*.self_attn.k_proj",
  "blk.*.attn_v": "model.layers.*.self_attn.v_proj",
  "blk.*.attn_output": "model.layers.*.self_attn.o_proj",
  "blk.*.ffn_norm": "model.layers.*.post_attention_layernorm",
  "blk.*.ffn_gate": "model.layers.*.mlp.gate_proj",
  "blk.*.ffn_up": "model.layers.*.mlp.up_proj",
  "blk.*.ffn_down": "model.layers.*.mlp.down_proj",
}
# Frequencies of llama3 scaling, which become settings of the config.
_ROPE_TENSOR = "rope_freqs.weight"
# Keys under `llama.` that are read here; any other could change the function, and is refused.
_READ = {
  "block_count",
  "context_length",
  "embedding_length",
  "feed_forward_length",
  "vocab_size",
  "attention.head_count",
  "attention.head_count_kv",
  "attention.key_length",
  "attention.value_length",
  "attention.layer_norm_rms_epsilon",
}
# Keys that change nothing as long as they hold one of these values.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
  "tensor_data_layout": ("Meta AI original pth",),
  "use_parallel_residual": (False,),
  "expert_count": (0,),
  "expert_used_count": (0,),
  "attention.causal": (True,),
}


def open_gguf(path: Path, *, name: str, revision: str | None = None) -> Checkpoint:
  """Returns the checkpoint in a GGUF file of the llama architecture, with tokenizer files made from its metadata."""
  file = read_gguf(path)
  config = config_of(file)
  where = str(path)
  architecture, layers = parse_config(config, where), layer_count(config, where)
  heads = {"attn_q": architecture.heads, "attn_k": architecture.kv_heads}
  tensors = {hf: _tensor(packed, heads.get(packed.name.split(".")[-2], 0)) for hf, packed in _by_hf_name(file).items()}
  return Checkpoint(
    name=name,
    path=path,
    revision=revision,
    config=config,
    architecture=architecture,
    layers=layers,
    tensors=checked_tensors(tensors, architecture, layers, where),
    assets=tokenizer_assets(file.metadata, where),
  )


def config_of(file: GgufFile) -> dict[str, Any]:
  """Returns the config.json of the model in a GGUF file; raises JaxchopError on a setting that is not supported."""
  kind = file.metadata.get("general.architecture")
  if kind != "llama":
    raise JaxchopError(f"{file.path}: general.architecture is {shown(kind)}; only llama is supported")
  if file.metadata.get("split.count", 0) not in (0, 1):
    raise JaxchopError(f"{file.path} is one part of a split model; join the parts first (llama-gguf-split --merge)")
  settings = {key.removeprefix("llama."): value for key, value in file.metadata.items() if key.startswith("llama.")}
  _check_known(settings, file.path)
  embedding = file.tensors.get("token_embd.weight")
  if embedding is None or len(embedding.shape) != 2:
    raise JaxchopError(f"tensor token_embd.weight is missing in {file.path} or is no matrix")
  heads = settings.get("attention.head_count")
  config = {
    "architectures": [ARCHITECTURE],
    "model_type": "llama",
    "vocab_size": settings.get("vocab_size", embedding.shape[0]),
    "hidden_size": settings.get("embedding_length"),
    "intermediate_size": settings.get("feed_forward_length"),
    "num_hidden_layers": settings.get("block_count"),
    "num_attention_heads": heads,
    "num_key_value_heads": settings.get("attention.head_count_kv", heads),
    "hidden_act": "silu",
    "rms_norm_eps": settings.get("attention.layer_norm_rms_epsilon"),
    "max_position_embeddings": settings.get("context_length"),
    "tie_word_embeddings": "output.weight" not in file.tensors,
    "attention_bias": "blk.0.attn_q.bias" in file.tensors,
    "mlp_bias": "blk.0.ffn_gate.bias" in file.tensors,
  }
  if missing := [key for key, value in config.items() if value is None]:
    raise JaxchopError(f"{file.path}: the metadata gives no {missing[0]}; the file is not complete")
  layers = layer_count(config, str(file.path))
  # A lie about the layers must not cost the time and the memory to list them.
  if layers > len(file.tensors):
    raise JaxchopError(f"{file.path}: states {layers:,} layers, but holds {len(file.tensors)} tensors; it is broken")
  head_dim = parse_config(config | {"head_dim": settings.get("attention.key_length")}, str(file.path)).head_dim
  config |= {"head_dim": head_dim} | special_ids(file.metadata, str(file.path))
  config |= rope_settings(settings, file.tensors.get(_ROPE_TENSOR), head_dim, file.path)
  return cut_config(config, range(layers), dtype=_main_dtype(file.tensors))


def _check_known(settings: Mapping[str, Any], path: Path) -> None:
  for key, value in settings.items():
    if key not in _READ and not key.startswith("rope.") and value not in _NEUTRAL.get(key, ()):
      raise JaxchopError(f"{path}: llama.{shown(key)} is {shown(value)}; that setting is not supported")
  if settings.get("attention.key_length") != settings.get("attention.value_length"):
    raise JaxchopError(f"{path}: llama.attention.key_length and value_length differ; one head width is supported")


def _main_dtype(tensors: Mapping[str, Packed]) -> str:
  """The element type that holds most of the weights."""
  sizes: Counter[str] = Counter()
  for packed in tensors.values():
    sizes[packed.dtype.name] += int(np.prod(packed.shape, dtype=np.int64))
  return sizes.most_common(1)[0][0]


def _by_hf_name(file: GgufFile) -> dict[str, Packed]:
  result = {}
  for name, packed in file.tensors.items():
    stem, _, kind = name.rpartition(".")
    parts = stem.split(".")
    layer = parts[1] if parts[0] == "blk" and len(parts) == 3 else ""
    pattern = ".".join([parts[0], "*", parts[2]]) if layer else stem
    if name == _ROPE_TENSOR:
      continue
    if pattern not in _NAMES or kind not in ("weight", "bias"):
      raise JaxchopError(f"tensor {shown(name)} in {file.path} is not part of a Llama")
    result[f"{_NAMES[pattern].replace('*', layer)}.{kind}"] = packed
  return result


def _tensor(packed: Packed, heads: int) -> Tensor:
  """`heads` is the number of heads whose rows llama.cpp interleaved, or 0 where it did not."""
  read = functools.partial(_read, packed, heads)
  return Tensor(shape=packed.shape, dtype=packed.dtype, read=read, file=packed.file)


def _read(packed: Packed, heads: int, index: Index | None = None) -> np.ndarray:
  (start, stop), *rest = bounds(packed.shape, index)
  if not rest:
    vector = unpack(packed, slice(None))[0]
    vector = vector[_interleaved(vector.size, heads)] if heads else vector
    return np.array(vector[start:stop])
  rows = _interleaved(packed.shape[0], heads)[start:stop] if heads else slice(start, stop)
  values = unpack(packed, rows)
  return values if rest[0] == (0, packed.shape[1]) else np.array(values[:, slice(*rest[0])])


def _interleaved(rows: int, heads: int) -> np.ndarray:
  """Returns where each row of the Hugging Face layout lies; the inverse of llama.cpp's convert_hf_to_gguf `permute`."""
  return np.arange(rows).reshape(heads, -1, 2).swapaxes(1, 2).reshape(-1)
