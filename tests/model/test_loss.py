"""The chunked loss equals the plain one, values and gradients, whatever the chunk."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxchop.model.loss import next_token_loss, token_nll

B, T, D, V = 2, 7, 16, 50
X_BTD, HEAD_DV = (jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate([(B, T, D), (D, V)]))
TARGET_BT = jax.random.randint(jax.random.key(2), (B, T), 0, V)
WEIGHT_BT = jax.random.bernoulli(jax.random.key(3), 0.7, (B, T))


def plain_nll(x_BTD, head_DV):
  logits_BTV = x_BTD @ head_DV
  return jax.nn.logsumexp(logits_BTV, -1) - jnp.take_along_axis(logits_BTV, TARGET_BT[..., None], -1)[..., 0]


def plain_loss(x_BTD, head_DV):
  return 3 * jnp.sum(WEIGHT_BT * plain_nll(x_BTD, head_DV))


@pytest.mark.parametrize("chunk", [1, 4, 7, 14, 512])
def test_every_chunk_size_gives_the_plain_values_and_gradients(chunk):
  def chunked(x_BTD, head_DV):
    return 3 * next_token_loss(x_BTD, head_DV, TARGET_BT, WEIGHT_BT, chunk=chunk)

  found, expected = (jax.value_and_grad(f, (0, 1))(X_BTD, HEAD_DV) for f in (chunked, plain_loss))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), found, expected)
  nll_BT = token_nll(X_BTD, HEAD_DV, TARGET_BT, chunk=chunk)
  np.testing.assert_allclose(nll_BT, plain_nll(X_BTD, HEAD_DV), rtol=1e-5, atol=1e-5)


def test_the_value_alone_equals_the_value_beside_the_gradient():
  value = next_token_loss(X_BTD, HEAD_DV, TARGET_BT, WEIGHT_BT)
  beside = jax.value_and_grad(next_token_loss)(X_BTD, HEAD_DV, TARGET_BT, WEIGHT_BT)[0]
  np.testing.assert_allclose(value, beside, rtol=1e-6)


def test_no_array_of_the_size_of_all_logits_exists():
  B, T, V, chunk = 4, 64, 1000, 16
  x, head = jnp.ones((B, T, 8)), jnp.ones((8, V))
  target, weight = jnp.zeros((B, T), jnp.int32), jnp.ones((B, T))
  loss = jax.jit(jax.grad(lambda x, head: next_token_loss(x, head, target, weight, chunk=chunk), (0, 1)))
  temporary = loss.lower(x, head).compile().memory_analysis().temp_size_in_bytes
  assert temporary < 4 * B * T * V / 2
