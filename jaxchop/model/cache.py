"""A pass over a prompt that keeps its keys and values, and a pass over one more token that uses them.

Rows are padded on the left, so every row's next token goes to the same slot. Positions count from each row's first
token, as transformers does with position_ids = cumsum(attention_mask) - 1.
Shapes: B batch, T prompt slots, S cache slots, D width, N query heads, K key/value heads, H head width, V vocabulary.
"""

import dataclasses

import jax
import jax.numpy as jnp

from jaxchop.errors import UsageError
from jaxchop.model.attention import cached_attention, causal_attention
from jaxchop.model.llama import Llama
from jaxchop.model.rope import rotation


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Cache:
  """What later tokens need of earlier ones: a pytree of static shapes, updated in place where it is donated."""

  # Rotated keys k_BKHS, one array a layer.
  keys: tuple[jax.Array, ...]
  # Values v_BKSH, one array a layer.
  values: tuple[jax.Array, ...]
  # First slot of each row that holds a token, not padding, [B].
  first: jax.Array
  # Slots filled so far, a scalar.
  written: jax.Array

  @property
  def slots(self) -> int:
    return self.values[0].shape[2]


def prefill(
  model: Llama, ids_BT: jax.Array, *, slots: int, first_B: jax.Array | None = None
) -> tuple[jax.Array, Cache]:
  """Returns logits_BV after the last slot of the prompts, and a cache of `slots` slots that holds them.

  `first_B` is the first slot of each row that is not padding; None means that no row is padded. Raises UsageError
  when the prompts are longer than the cache.
  """
  rows, length = ids_BT.shape
  if length > slots:
    raise UsageError(f"prompts of {length} tokens do not fit a cache of {slots} slots; give it at least {length}")
  begins_B = jnp.zeros(rows, jnp.int32) if first_B is None else first_B
  turn = rotation(model.config, jnp.maximum(jnp.arange(length) - begins_B[:, None], 0))
  keys, values = [], []

  def attend(q_BTNH: jax.Array, k_BTKH: jax.Array, v_BTKH: jax.Array) -> jax.Array:
    room = [(0, 0), (0, slots - length), (0, 0), (0, 0)]
    keys.append(jnp.pad(k_BTKH, room).transpose(0, 2, 3, 1))
    values.append(jnp.pad(v_BTKH, room).transpose(0, 2, 1, 3))
    return causal_attention(q_BTNH, k_BTKH, v_BTKH, first_B)

  x_BTD = model.embed(ids_BT)
  for layer in model.layers:
    x_BTD = layer(x_BTD, turn, attend)
  cache = Cache(keys=tuple(keys), values=tuple(values), first=begins_B, written=jnp.int32(length))
  return model.logits(x_BTD[:, -1:])[:, 0], cache


def decode(model: Llama, ids_B: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
  """Returns logits_BV after one more token a row, and the cache that holds it.

  Dynamic RoPE turns by the longest row so far, and keys in the cache stay as they were turned, as in transformers.
  A full cache gives NaN: inside a compiled program nothing can raise, and a wrong token must not look like a right one.
  """
  turn = rotation(model.config, (cache.written - cache.first)[:, None])
  keys, values = [], []

  def attend(q_BTNH: jax.Array, k_BTKH: jax.Array, v_BTKH: jax.Array) -> jax.Array:
    old_k, old_v = cache.keys[len(keys)], cache.values[len(values)]
    new_k, new_v = k_BTKH.transpose(0, 2, 3, 1), v_BTKH.transpose(0, 2, 1, 3)
    keys.append(jax.lax.dynamic_update_slice_in_dim(old_k, new_k, cache.written, axis=3))
    values.append(jax.lax.dynamic_update_slice_in_dim(old_v, new_v, cache.written, axis=2))
    return cached_attention(q_BTNH[:, 0], keys[-1], values[-1], cache.first, cache.written)[:, None]

  x_BTD = model.embed(ids_B[:, None])
  for layer in model.layers:
    x_BTD = layer(x_BTD, turn, attend)
  logits_BV = jnp.where(cache.written < cache.slots, model.logits(x_BTD)[:, 0], jnp.nan)
  return logits_BV, dataclasses.replace(cache, keys=tuple(keys), values=tuple(values), written=cache.written + 1)
