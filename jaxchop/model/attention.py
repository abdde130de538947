"""Grouped-query attention over what came before: one signature for a full sequence and for a cache.

Shapes: B batch, T queries, S keys, N query heads, K key/value heads, H head width.
"""

import jax
import jax.numpy as jnp


def causal_attention(q_BTNH: jax.Array, k_BTKH: jax.Array, v_BTKH: jax.Array) -> jax.Array:
  """Returns the attended values [B, T, N, H] of whole sequences; position t sees 0..t.

  Queries go in blocks that read only the keys before their end, which saves nearly half of the work, and the backward
  pass recomputes each block's probabilities: [T, T] never exists.
  """
  (B, T, N, H), K = q_BTNH.shape, k_BTKH.shape[2]
  # X = B * K problems, each of the G = N / K query heads that share one key/value head.
  q_XGTH = (q_BTNH * H**-0.5).reshape(B, T, K, -1, H).transpose(0, 2, 3, 1, 4).reshape(B * K, -1, T, H)
  k_XTH, v_XTH = (a.transpose(0, 2, 1, 3).reshape(B * K, T, H) for a in (k_BTKH, v_BTKH))
  size = max(64, T // 8)
  blocks = [
    _attend_block(q_XGTH[:, :, start : start + size], k_XTH[:, : start + size], v_XTH[:, : start + size])
    for start in range(0, T, size)
  ]
  y_XGTH = jnp.concatenate(blocks, axis=2)
  return y_XGTH.reshape(B, N, T, H).swapaxes(1, 2)


@jax.checkpoint
def _attend_block(q_XGTH: jax.Array, k_XSH: jax.Array, v_XSH: jax.Array) -> jax.Array:
  """Returns the values [X, G, T, H] of the last T of S positions."""
  (X, G, T, H), S = q_XGTH.shape, k_XSH.shape[1]
  score_XRS = jnp.einsum("XRH,XSH->XRS", q_XGTH.reshape(X, G * T, H), k_XSH, preferred_element_type=jnp.float32)
  seen_TS = jnp.tril(jnp.ones((T, S), bool), S - T)
  score_XGTS = jnp.where(seen_TS, score_XRS.reshape(X, G, T, S), -jnp.inf)
  share_XRS = jax.nn.softmax(score_XGTS).astype(v_XSH.dtype).reshape(X, G * T, S)
  return jnp.einsum("XRS,XSH->XRH", share_XRS, v_XSH).reshape(X, G, T, H)


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
