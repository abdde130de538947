"""transformers' torch Llama beside ours on the same random weights; the mapping here knows nothing of jaxchop/hub."""

import dataclasses
import functools
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import gguf
import jax.numpy as jnp
import numpy as np
import torch
import transformers
from hypothesis import strategies as st
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from jaxchop.model.config import LlamaConfig, Rope, RopeKind
from jaxchop.model.llama import Llama
from jaxchop.model.tree import abstract, unflatten

KINDS: tuple[RopeKind, ...] = typing.get_args(RopeKind)
# The suite runs two processes; threads of both that wait for work would take the cores from each other.
torch.set_num_threads(1)
# Length that the drawn scaled models were trained at; the tests go past it.
TRAINED = 12


@dataclasses.dataclass(frozen=True)
class Drawn:
  """An architecture as both sides call it, and the seed of its weights."""

  ours: LlamaConfig
  layers: int
  seed: int

  def theirs(self) -> transformers.LlamaConfig:
    c = self.ours
    return transformers.LlamaConfig(
      vocab_size=c.vocab_size,
      hidden_size=c.width,
      intermediate_size=c.mlp_width,
      num_hidden_layers=self.layers,
      num_attention_heads=c.heads,
      num_key_value_heads=c.kv_heads,
      head_dim=c.head_dim,
      rms_norm_eps=c.norm_eps,
      max_position_embeddings=c.max_positions,
      tie_word_embeddings=c.tied,
      attention_bias=c.attention_bias,
      mlp_bias=c.mlp_bias,
      rope_parameters=_rope_parameters(c.rope),
      bos_token_id=None,
      eos_token_id=None,
      pad_token_id=None,
    )


def _rope_parameters(rope: Rope) -> dict[str, Any]:
  settings: dict[str, Any] = {"rope_type": rope.kind, "rope_theta": rope.theta}
  if rope.kind != "default":
    settings |= {"factor": rope.factor}
  if rope.kind in ("llama3", "yarn"):
    settings |= {"original_max_position_embeddings": rope.original_max_positions}
  if rope.kind == "llama3":
    settings |= {"low_freq_factor": rope.low_freq_factor, "high_freq_factor": rope.high_freq_factor}
  if rope.kind == "yarn":
    settings |= {"beta_fast": rope.beta_fast, "beta_slow": rope.beta_slow, "truncate": rope.truncate}
    scales = {name: getattr(rope, name) for name in ("attention_factor", "mscale", "mscale_all_dim")}
    settings |= {name: scale for name, scale in scales.items() if scale is not None}
  return settings


@st.composite
def architectures(draw: st.DrawFn, kind: RopeKind) -> Drawn:
  """Draws over everything else that a LlamaForCausalLM may set, in widths that run in milliseconds."""
  kv_heads = draw(st.sampled_from([1, 2, 3]))
  heads = kv_heads * draw(st.sampled_from([1, 2, 3]))
  config = LlamaConfig(
    vocab_size=draw(st.sampled_from([31, 64])),
    # transformers wants a multiple of heads, even where head_dim is apart from it.
    width=heads * draw(st.sampled_from([3, 8])),
    mlp_width=draw(st.sampled_from([12, 40])),
    heads=heads,
    kv_heads=kv_heads,
    head_dim=draw(st.sampled_from([4, 8, 10])),
    norm_eps=draw(st.sampled_from([1e-6, 1e-5, 1e-2])),
    max_positions=TRAINED if kind == "dynamic" else 64,
    rope=Rope(kind=kind, theta=draw(st.sampled_from([100.0, 10_000.0, 500_000.0])), **draw(_scalings(kind))),
    tied=draw(st.booleans()),
    attention_bias=draw(st.booleans()),
    mlp_bias=draw(st.booleans()),
  )
  return Drawn(config, draw(st.sampled_from([1, 3])), draw(st.integers(0, 2**16)))


@st.composite
def _scalings(draw: st.DrawFn, kind: RopeKind) -> dict[str, Any]:
  if kind == "default":
    return {}
  settings = {"factor": draw(st.sampled_from([1.5, 4.0, 8.0]))}
  if kind in ("llama3", "yarn"):
    settings |= {"original_max_positions": TRAINED}
  if kind == "llama3":
    settings |= draw(st.sampled_from([{}, {"low_freq_factor": 0.5, "high_freq_factor": 2.0}]))
  if kind == "yarn":
    settings |= draw(st.sampled_from([{}, {"beta_fast": 4.0, "beta_slow": 0.5}]))
    settings |= draw(st.sampled_from([{}, {"attention_factor": 1.3}, {"mscale": 0.8, "mscale_all_dim": 0.5}]))
    settings |= {"truncate": draw(st.booleans())}
  return settings


def pair(drawn: Drawn) -> tuple[transformers.LlamaForCausalLM, Llama]:
  """Returns both models with one set of random weights, norms and biases too."""
  torch.manual_seed(drawn.seed)
  theirs = transformers.LlamaForCausalLM(drawn.theirs()).eval()
  with torch.no_grad():
    for name, weight in theirs.named_parameters():
      weight.normal_(1.0 if "norm" in name else 0.0, 0.3)
  return theirs, ours(theirs.state_dict(), drawn.ours, drawn.layers)


def ours(arrays: Mapping[str, torch.Tensor], config: LlamaConfig, layers: int) -> Llama:
  """Returns our tree with transformers' arrays: a state dict, or gradients under its names."""
  flat = {_dotted(name): jnp.asarray(_array(name, array)) for name, array in arrays.items()}
  if config.tied:
    flat.pop("head", None)
  return unflatten(abstract(config, layers), flat)


def gradients(theirs: transformers.LlamaForCausalLM, drawn: Drawn) -> Llama:
  """Returns the gradients that torch left on the parameters, as our tree."""
  grads = {name: weight.grad for name, weight in theirs.named_parameters()}
  return ours(grads, drawn.ours, drawn.layers)


def from_gguf(path: Path) -> transformers.LlamaForCausalLM:
  """Returns a GGUF file's model as transformers reads it; `from_pretrained` would ask for one package more."""
  # transformers parses the file at each call, and builds the table of all names for each of 400 modules.
  once = {name: functools.cache(getattr(gguf, name)) for name in ("GGUFReader", "get_tensor_name_map")}
  with mock.patch.multiple(gguf, **once):
    config = transformers.LlamaConfig(**load_gguf_checkpoint(path)["config"])
    theirs = transformers.LlamaForCausalLM(config)
    weights = load_gguf_checkpoint(path, return_tensors=True, model_to_load=theirs)["tensors"]
  missing, unknown = theirs.load_state_dict(weights, strict=False)
  assert not unknown and set(missing) <= {"lm_head.weight"}, (missing, unknown)
  return theirs.eval()


def tokens(drawn: Drawn, *shape: int) -> np.ndarray:
  return np.random.default_rng(drawn.seed).integers(0, drawn.ours.vocab_size, shape)


_OUTER = {"model.embed_tokens.weight": "embedding", "model.norm.weight": "norm.scale", "lm_head.weight": "head"}
_INNER = {"input_layernorm.weight": "attention_norm.scale", "post_attention_layernorm.weight": "mlp_norm.scale"}
for _theirs, _ours in (("weight", "kernel"), ("bias", "bias")):
  _INNER |= {f"self_attn.{part}_proj.{_theirs}": f"attention.{part}.{_ours}" for part in "qkvo"}
  _INNER |= {f"mlp.{part}_proj.{_theirs}": f"mlp.{part}.{_ours}" for part in ("gate", "up", "down")}


def _dotted(name: str) -> str:
  if name in _OUTER:
    return _OUTER[name]
  _, _, layer, part = name.split(".", 3)
  return f"layers.{layer}.{_INNER[part]}"


def _array(name: str, array: torch.Tensor) -> np.ndarray:
  """Returns kernels as [in, out]; torch keeps them as [out, in], and the embedding as we do."""
  return (array.T if array.ndim == 2 and "embed" not in name else array).detach().float().numpy().copy()
