"""A pass over a prompt that keeps its keys and values, and a pass over one more token that uses them.

Rows are padded on the left, so every row's next token goes to the same slot. Positions count from each row's first
token, as transformers does with position_ids = cumsum(attention_mask) - 1.
Shapes: B batch, T prompt slots, S cache slots, D width, N query heads, K key/value heads, R = B * K,
H head width, V vocabulary.
"""

import dataclasses

import jax
import jax.numpy as jnp

from jaxchop.errors import UsageError
from jaxchop.model.attention import cached_attention, causal_attention
from jaxchop.model.llama import Llama
from jaxchop.model.placement import merged
from jaxchop.model.rope import rotation


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Cache:
  """What later tokens need of earlier ones: a pytree of static shapes, updated in place where it is donated."""

  # Rotated keys k_RHS, one array a layer.
  keys: tuple[jax.Array, ...]
  # Values v_RSH, one array a layer.
  values: tuple[jax.Array, ...]
  # First slot of each row that holds a token, not padding, [B].
  first: jax.Array
  # Slots filled so far, a scalar.
  written: jax.Array

  @property
  def slots(self) -> int:
    return self.values[0].shape[1]


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
    k_RHS, v_RSH = _laid(jnp.pad(k_BTKH, room), jnp.pad(v_BTKH, room))
    keys.append(k_RHS)
    values.append(v_RSH)
    return causal_attention(q_BTNH, k_BTKH, v_BTKH, first_B)

  x_BTD = model.embed(ids_BT)
  for layer in model.layers:
    x_BTD = layer(x_BTD, turn, attend)
  cache = Cache(keys=tuple(keys), values=tuple(values), first=begins_B, written=jnp.int32(length))
  return model.logits(x_BTD[:, -1:])[:, 0], cache


def decode(model: Llama, ids_B: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
  """Returns logits_BV after one more token a row, and the cache that holds it; NaN where the cache was full."""
  x_BTD, cache = extend(model, ids_B[:, None], cache)
  return model.logits(x_BTD)[:, 0], cache


def extend(model: Llama, ids_BT: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
  """Returns the residual stream x_BTD behind the last block for T more tokens a row, and the cache that holds them.

  Setting `written` back takes tokens back: what lies behind it is never read, and written over later.
  Dynamic RoPE turns by the longest row so far, and keys in the cache stay as they were turned, as in transformers.
  A full cache gives NaN: inside a compiled program nothing can raise, and a wrong token must not look like a right one.
  """
  more = ids_BT.shape[1]
  turn = rotation(model.config, cache.written - cache.first[:, None] + jnp.arange(more))
  keys, values = [], []

  def attend(q_BTNH: jax.Array, k_BTKH: jax.Array, v_BTKH: jax.Array) -> jax.Array:
    new_k, new_v = _laid(k_BTKH, v_BTKH)
    keys.append(jax.lax.dynamic_update_slice_in_dim(cache.keys[len(keys)], new_k, cache.written, axis=2))
    values.append(jax.lax.dynamic_update_slice_in_dim(cache.values[len(values)], new_v, cache.written, axis=1))
    return cached_attention(q_BTNH, keys[-1], values[-1], cache.first, cache.written)

  x_BTD = model.embed(ids_BT)
  for layer in model.layers:
    x_BTD = layer(x_BTD, turn, attend)
  x_BTD = jnp.where(cache.written + more <= cache.slots, x_BTD, jnp.nan)
  return x_BTD, dataclasses.replace(cache, keys=tuple(keys), values=tuple(values), written=cache.written + more)


def _laid(k_BTKH: jax.Array, v_BTKH: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Returns keys and values as the cache holds them: k_RHT and v_RTH."""
  return merged(k_BTKH.transpose(0, 2, 3, 1), 2), merged(v_BTKH.transpose(0, 2, 1, 3), 2)
