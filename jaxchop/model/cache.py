"""A pass over a prompt that keeps its keys and values, and a pass over one more token that uses them.

Rows are padded on the left, so every row's next token goes to the same slot. Positions count from each row's first
token, as transformers does with position_ids = cumsum(attention_mask) - 1.
Shapes: B batch, T prompt slots, S cache slots, D width, N query heads, K key/value heads, H head width, V vocabulary.
"""

import dataclasses

import jax
import jax.numpy as jnp

from jaxchop.errors import UsageError
from jaxchop.model import attention
from jaxchop.model.llama import Llama
from jaxchop.model.rope import rotation


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Cache:
  """What later tokens need of earlier ones: a pytree of static shapes, safe to donate."""

  # Rotated keys k_BSKH, one array a layer.
  keys: tuple[jax.Array, ...]
  # Values v_BSKH, one array a layer.
  values: tuple[jax.Array, ...]
  # First slot of each row that holds a token, not padding.
  first_B: jax.Array
  # Slots filled so far, a scalar.
  written: jax.Array

  @property
  def slots(self) -> int:
    return self.keys[0].shape[1]


def prefill(
  model: Llama, ids_BT: jax.Array, *, slots: int, first_B: jax.Array | None = None
) -> tuple[jax.Array, Cache]:
  """Returns logits_BV after the last slot of the prompts, and a cache of `slots` slots that holds them.

  `first_B` is the first slot of each row that is not padding; None means that no row is padded. Raises UsageError
  when the prompts are longer than the cache.
  """
  rows, length = ids_BT.shape
  if length > slots:
    raise UsageError(
      f"prompts of {length} tokens do not fit a cache of {slots} slots; give it at least {length}"
    )
  first_B = jnp.zeros(rows, jnp.int32) if first_B is None else first_B
  visible_BTS = attention.visible_slots(length, first_B, jnp.int32(0), length)
  turn = rotation(model.config, jnp.maximum(jnp.arange(length) - first_B[:, None], 0))
  keys, values = [], []

  def attend(q_BTNH: jax.Array, k_BTKH: jax.Array, v_BTKH: jax.Array) -> jax.Array:
    room = [(0, 0), (0, slots - length), (0, 0), (0, 0)]
    keys.append(jnp.pad(k_BTKH, room))
    values.append(jnp.pad(v_BTKH, room))
    return attention.cached_attention(q_BTNH, k_BTKH, v_BTKH, visible_BTS)

  x_BTD = model.embed(ids_BT)
  for layer in model.layers:
    x_BTD = layer(x_BTD, turn, attend)
  cache = Cache(keys=tuple(keys), values=tuple(values), first_B=first_B, written=jnp.int32(length))
  return model.logits(x_BTD[:, -1:])[:, 0], cache


def decode(model: Llama, ids_B: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
  """Returns logits_BV after one more token a row, and the cache that holds it.

  A full cache gives NaN: inside a compiled program nothing can raise, and a wrong token must not look like a right one.
  """
  visible_BTS = attention.visible_slots(cache.slots, cache.first_B, cache.written, 1)
  turn = rotation(model.config, (cache.written - cache.first_B)[:, None])
  keys, values = [], []

  def attend(q_BTNH: jax.Array, k_BTKH: jax.Array, v_BTKH: jax.Array) -> jax.Array:
    at = (0, cache.written, 0, 0)
    keys.append(jax.lax.dynamic_update_slice(cache.keys[len(keys)], k_BTKH, at))
    values.append(jax.lax.dynamic_update_slice(cache.values[len(values)], v_BTKH, at))
    return attention.cached_attention(q_BTNH, keys[-1], values[-1], visible_BTS)

  x_BTD = model.embed(ids_B[:, None])
  for layer in model.layers:
    x_BTD = layer(x_BTD, turn, attend)
  logits_BV = jnp.where(cache.written < cache.slots, model.logits(x_BTD)[:, 0], jnp.nan)
  return logits_BV, dataclasses.replace(
    cache, keys=tuple(keys), values=tuple(values), written=cache.written + 1
  )
