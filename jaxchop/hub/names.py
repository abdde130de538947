"""The names and layouts of Hugging Face tensors: one table a family, which serves reading and writing alike.

Hugging Face stores a linear layer as [out, in], this package as [in, out]; the embedding is [V, D] in both.
"""

import itertools
import re
from collections.abc import Sequence

from jaxchop.errors import UsageError
from jaxchop.model.config import LlamaConfig
from jaxchop.model.tree import abstract, flatten

# Our dotted name: the Hugging Face name. `*` stands for the layer's index.
_LLAMA = {
  "embedding": "model.embed_tokens.weight",
  "layers.*.attention_norm.scale": "model.layers.*.input_layernorm.weight",
  "layers.*.attention.q.kernel": "model.layers.*.self_attn.q_proj.weight",
  "layers.*.attention.q.bias": "model.layers.*.self_attn.q_proj.bias",
  "layers.*.attention.k.kernel": "model.layers.*.self_attn.k_proj.weight",
  "layers.*.attention.k.bias": "model.layers.*.self_attn.k_proj.bias",
  "layers.*.attention.v.kernel": "model.layers.*.self_attn.v_proj.weight",
  "layers.*.attention.v.bias": "model.layers.*.self_attn.v_proj.bias",
  "layers.*.attention.o.kernel": "model.layers.*.self_attn.o_proj.weight",
  "layers.*.attention.o.bias": "model.layers.*.self_attn.o_proj.bias",
  "layers.*.mlp_norm.scale": "model.layers.*.post_attention_layernorm.weight",
  "layers.*.mlp.gate.kernel": "model.layers.*.mlp.gate_proj.weight",
  "layers.*.mlp.gate.bias": "model.layers.*.mlp.gate_proj.bias",
  "layers.*.mlp.up.kernel": "model.layers.*.mlp.up_proj.weight",
  "layers.*.mlp.up.bias": "model.layers.*.mlp.up_proj.bias",
  "layers.*.mlp.down.kernel": "model.layers.*.mlp.down_proj.weight",
  "layers.*.mlp.down.bias": "model.layers.*.mlp.down_proj.bias",
  "norm.scale": "model.norm.weight",
  "head": "lm_head.weight",
}
_OURS = {hf: dotted for dotted, hf in _LLAMA.items()}
# Zero-padded or signed indices are other names, not other spellings of this one.
_INDEX = re.compile(r"(?<=layers\.)(?:0|[1-9][0-9]*)(?=\.)")
# Frequencies that checkpoints of 2023 stored beside the weights; they follow from the config.
_IGNORABLE = re.compile(r"model\.(layers\.[0-9]+\.self_attn\.)?rotary_emb\.inv_freq")

EMBEDDING = _LLAMA["embedding"]
HEAD = _LLAMA["head"]


def hf_name(dotted: str) -> str:
  """Returns the Hugging Face name of a parameter; raises KeyError on a name the family does not have."""
  return _translate(dotted, _LLAMA)


def dotted_name(hf: str) -> str:
  """Returns the parameter of a Hugging Face name; raises KeyError on a name the family does not have."""
  return _translate(hf, _OURS)


def transposed(dotted: str) -> bool:
  """Returns whether the Hugging Face tensor is this parameter with its two axes exchanged."""
  return dotted == "head" or dotted.endswith(".kernel")


def layer_of(hf: str) -> int | None:
  """Returns the layer a Hugging Face tensor belongs to, or None for what surrounds the stack."""
  found = _INDEX.search(hf)
  return int(found[0]) if found else None


def ignorable(hf: str) -> bool:
  """Returns whether a tensor holds nothing but what the config already says (stored rotary frequencies)."""
  return _IGNORABLE.fullmatch(hf) is not None


def renumber(hf: str, keep: Sequence[int]) -> str | None:
  """Returns the tensor's name when only the layers `keep` stay, in that order; None when its layer is dropped."""
  layer = layer_of(hf)
  if layer is None:
    return hf
  return _INDEX.sub(str(list(keep).index(layer)), hf, count=1) if layer in keep else None


def checked_keep(keep: Sequence[int], layers: int) -> tuple[int, ...]:
  """Returns `keep` as a tuple; raises UsageError unless it rises strictly within 0..layers-1 and names a layer."""
  keep = tuple(keep)
  if not keep:
    raise UsageError("no layer is kept; a model needs at least one")
  if outside := [layer for layer in keep if not 0 <= layer < layers]:
    raise UsageError(f"layer {outside[0]} is outside a model of {layers} layers (0..{layers - 1})")
  if any(low >= high for low, high in itertools.pairwise(keep)):
    raise UsageError(f"kept layers {list(keep)} must rise, each named once")
  return keep


def expected(config: LlamaConfig, layers: int) -> dict[str, tuple[int, ...]]:
  """Returns {Hugging Face name: Hugging Face shape} of every tensor that a checkpoint of `layers` layers holds."""
  shapes = {}
  for dotted, leaf in flatten(abstract(config, 1)).items():
    shape = leaf.shape[::-1] if transposed(dotted) else leaf.shape
    name = hf_name(dotted)
    for layer in range(layers) if layer_of(name) is not None else [0]:
      shapes[_INDEX.sub(str(layer), name, count=1)] = shape
  return shapes


def _translate(name: str, table: dict[str, str]) -> str:
  found = _INDEX.search(name)
  pattern = _INDEX.sub("*", name, count=1)
  if pattern not in table or ("*" in name):
    raise KeyError(f"{name} is not a tensor of the Llama family")
  return table[pattern].replace("*", found[0]) if found else table[pattern]
