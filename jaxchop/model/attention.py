"""Grouped-query attention over what came before: one signature for a full sequence and for a cache.

Shapes: B batch, T queries, S keys, N query heads, K key/value heads, H head width.
"""

import jax
import jax.numpy as jnp


def causal_attention(q_BTNH: jax.Array, k_BTKH: jax.Array, v_BTKH: jax.Array) -> jax.Array:
  """Returns the attended values [B, T, N, H] of whole sequences; position t sees 0..t."""
  return jax.nn.dot_product_attention(q_BTNH, k_BTKH, v_BTKH, is_causal=True)


def cached_attention(
  q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, visible_BTS: jax.Array
) -> jax.Array:
  """Returns the attended values [B, T, N, H]; query t sees the cache slots where `visible_BTS` is true."""
  return jax.nn.dot_product_attention(q_BTNH, k_BSKH, v_BSKH, mask=visible_BTS[:, None])


def visible_slots(slots: int, first_B: jax.Array, written: jax.Array, queries: int) -> jax.Array:
  """Returns visible_BTS: slot s is seen by query t when it is no padding and not later than the query.

  `first_B` is the first slot that holds a token of each row (rows are padded on the left), `written` the number of
  slots filled before these queries.
  """
  slot_S = jnp.arange(slots)
  query_T = written + jnp.arange(queries)
  return (slot_S >= first_B[:, None, None]) & (slot_S <= query_T[:, None])
