"""Logits of a model on a fixed probe, the whole sequence at once and token by token through the cache.

Shapes: T probe length, V vocabulary.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxchop.compiler import Program
from jaxchop.model.cache import Cache, decode, prefill
from jaxchop.model.config import LlamaConfig
from jaxchop.model.llama import Llama

# Tokens of a probe; longer only to pass a trained length that is nearly as short.
_LENGTH = 64
# Longest probe: beyond it the time of a check would be the probe's.
_LONGEST = 512
# How far a longer probe passes the trained length.
_BEYOND = 16


def probe(config: LlamaConfig) -> np.ndarray:
  """Returns ids_T, a fixed choice for each vocabulary and reach; they pass the trained length where that is short."""
  reach = trained_length(config) + _BEYOND
  length = max(_LENGTH, reach) if reach <= _LONGEST else _LENGTH
  return np.random.default_rng(0).integers(0, config.vocab_size, length, dtype=np.int32)


def trained_length(config: LlamaConfig) -> int:
  """Returns the number of positions the model was trained at, before any RoPE scaling."""
  return config.rope.original_max_positions or config.max_positions


def full_logits(model: Llama, ids_T: np.ndarray) -> np.ndarray:
  """Returns logits_TV of one pass, matrix products in full float32."""
  with jax.default_matmul_precision("highest"):
    return np.asarray(_full(model, ids_T))


def cached_logits(model: Llama, ids_T: np.ndarray) -> np.ndarray:
  """Returns logits_TV where every token is decoded on its own, from the cached keys and values."""
  with jax.default_matmul_precision("highest"):
    return np.asarray(_cached(model, ids_T))


@Program
def _full(model: Llama, ids_T: jax.Array) -> jax.Array:
  # Not scanned: that would stack the layers, a second copy of them.
  return model(ids_T[None], layout="unrolled")[0]


@Program
def _cached(model: Llama, ids_T: jax.Array) -> jax.Array:
  def one(cache: Cache, token: jax.Array) -> tuple[Cache, jax.Array]:
    logits_BV, cache = decode(model, token[None], cache)
    return cache, logits_BV[0]

  # A cache that holds nothing yet: the pass that would make one is not compiled for it.
  cache = jax.eval_shape(lambda: prefill(model, ids_T[None, :1], slots=len(ids_T))[1])
  empty = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), cache)
  return jax.lax.scan(one, empty, ids_T)[1]


def cacheable(config: LlamaConfig, ids_T: np.ndarray) -> np.ndarray:
  """Returns the part of a probe on which both ways must agree.

  Under dynamic RoPE the frequencies change with the length beyond max_positions, and keys rotated earlier stay as they
  are, in transformers as here.
  """
  return ids_T[: config.max_positions] if config.rope.kind == "dynamic" else ids_T
