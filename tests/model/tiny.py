"""One tiny Llama for the tests of this folder: grouped heads, head_dim apart from the width, lively weights."""

from typing import Any

import jax
from flax import nnx

from jaxchop.model.config import LlamaConfig
from jaxchop.model.llama import Llama


def tiny_llama(layers: int = 2, **settings: Any) -> Llama:
  sizes = {"vocab_size": 50, "width": 16, "mlp_width": 24, "heads": 4, "kv_heads": 2, "head_dim": 6}
  config = LlamaConfig(**{**sizes, "norm_eps": 1e-5, "max_positions": 64, **settings})
  model = Llama(config, layers, rngs=nnx.Rngs(0))
  return jax.tree.map(lambda leaf: 10 * leaf if leaf.ndim == 2 else leaf, model)
