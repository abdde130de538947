"""The chunked loss equals the plain one, values and gradients, whatever the chunk."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxchop.compiler import Program
from jaxchop.model.loss import next_token_loss, token_nll, token_nll_and_top

B, T, D, V = 2, 7, 16, 50
X_BTD, HEAD_DV = (jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate([(B, T, D), (D, V)]))
TARGET_BT = jax.random.randint(jax.random.key(2), (B, T), 0, V)
WEIGHT_BT = jax.random.bernoulli(jax.random.key(3), 0.7, (B, T))


def plain_nll(x_BTD, head_DV, target_BT):
  logits_BTV = x_BTD @ head_DV
  return jax.nn.logsumexp(logits_BTV, -1) - jnp.take_along_axis(logits_BTV, target_BT[..., None], -1)[..., 0]


def plain_loss(x_BTD, head_DV):
  return 3 * jnp.sum(WEIGHT_BT * plain_nll(x_BTD, head_DV, TARGET_BT))


@pytest.mark.parametrize("chunk", [1, 4, 7, 14, 512])
def test_every_chunk_size_gives_the_plain_values_and_gradients(chunk):
  def chunked(x_BTD, head_DV):
    return 3 * next_token_loss(x_BTD, head_DV, TARGET_BT, WEIGHT_BT, chunk=chunk)

  found, expected = (jax.value_and_grad(f, (0, 1))(X_BTD, HEAD_DV) for f in (chunked, plain_loss))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), found, expected)


@pytest.mark.parametrize("chunk", [2, 512])
def test_rows_positions_and_vocabulary_spread_over_devices_give_the_plain_values_and_gradients(chunk):
  length, keys = 6, jax.random.split(jax.random.key(5), 4)
  x_BTD, head_DV = jax.random.normal(keys[0], (B, length, D)), jax.random.normal(keys[1], (D, V))
  target_BT = jax.random.randint(keys[2], (B, length), 0, V)
  weight_BT = jax.random.uniform(keys[3], (B, length))

  def plain(x_BTD, head_DV):
    return jnp.sum(weight_BT * plain_nll(x_BTD, head_DV, target_BT))

  def with_z(x_BTD, head_DV):
    return plain(x_BTD, head_DV) + 0.1 * jnp.sum(weight_BT * jax.nn.logsumexp(x_BTD @ head_DV, -1) ** 2)

  for shape in ((2, 2, 1), (1, 2, 2)):
    mesh = jax.make_mesh(shape, ("fsdp", "context", "tensor"), axis_types=(AxisType.Explicit,) * 3)
    rows, columns = P("fsdp" if shape[0] > 1 else None, "context"), P("context", "tensor" if shape[2] > 1 else None)
    put = lambda a, spec: jax.device_put(a, NamedSharding(mesh, spec))  # noqa: B023, E731
    with jax.set_mesh(mesh):
      x, head, target, weight = put(x_BTD, rows), put(head_DV, columns), put(target_BT, rows), put(weight_BT, rows)
      loss = Program(jax.value_and_grad(lambda *a: next_token_loss(*a, chunk=chunk, z_loss=0.1), (0, 1)))
      found, nll_BT = loss(x, head, target, weight), Program(token_nll)(x, head, target)
      same_BT, top_BT = Program(token_nll_and_top)(x, head, target)
    expected = plain(x_BTD, head_DV), jax.grad(with_z, (0, 1))(x_BTD, head_DV)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), found, expected)
    np.testing.assert_allclose(nll_BT, plain_nll(x_BTD, head_DV, target_BT), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(same_BT, nll_BT)
    np.testing.assert_array_equal(top_BT, (x_BTD @ head_DV).argmax(axis=-1))


@pytest.mark.parametrize("vocabulary", [50, 3 * 4096, 4 * 1187, 4099], ids=["one chunk", "even", "odd", "prime"])
@pytest.mark.parametrize("length", [7, 2100], ids=["one chunk", "many chunks"])
def test_without_gradients_every_token_and_every_vocabulary_in_chunks_gives_the_plain_values(vocabulary, length):
  keys = jax.random.split(jax.random.key(4), 3)
  x_BTD, head_DV = jax.random.normal(keys[0], (1, length, D)), jax.random.normal(keys[1], (D, vocabulary))
  target_BT = jax.random.randint(keys[2], (1, length), 0, vocabulary)
  nll_BT = jax.jit(token_nll)(x_BTD, head_DV, target_BT)
  np.testing.assert_allclose(nll_BT, plain_nll(x_BTD, head_DV, target_BT), rtol=1e-5, atol=1e-5)


def test_z_loss_adds_the_gradient_of_the_squared_log_of_the_partition_function():
  def plain(x_BTD, head_DV):
    log_z_BT = jax.nn.logsumexp(x_BTD @ head_DV, -1)
    return plain_loss(x_BTD, head_DV) + 3 * 0.1 * jnp.sum(WEIGHT_BT * log_z_BT**2)

  def chunked(x_BTD, head_DV):
    return 3 * next_token_loss(x_BTD, head_DV, TARGET_BT, WEIGHT_BT, chunk=4, z_loss=0.1)

  value, slopes = jax.value_and_grad(chunked, (0, 1))(X_BTD, HEAD_DV)
  np.testing.assert_allclose(value, plain_loss(X_BTD, HEAD_DV), rtol=1e-5)
  expected = jax.grad(plain, (0, 1))(X_BTD, HEAD_DV)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), slopes, expected)


def test_without_z_loss_the_program_is_the_same():
  def text(**options):
    loss = jax.grad(lambda *a: next_token_loss(*a, **options), (0, 1))
    return jax.jit(loss).lower(X_BTD, HEAD_DV, TARGET_BT, WEIGHT_BT).as_text()

  assert text() == text(z_loss=0.0) != text(z_loss=1e-4)


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


def test_without_gradients_no_array_of_a_chunk_of_tokens_and_the_whole_vocabulary_exists():
  B, T, V = 1, 2048, 8 * 4096
  x, head, target = jnp.ones((B, T, 8)), jnp.ones((8, V)), jnp.zeros((B, T), jnp.int32)
  temporary = jax.jit(token_nll).lower(x, head, target).compile().memory_analysis().temp_size_in_bytes
  assert temporary < 4 * B * T * V / 2


@pytest.mark.parametrize("vocabulary", [50, 8192])
def test_the_most_probable_token_is_the_first_of_the_largest_logits(vocabulary):
  head_DV = jax.random.normal(jax.random.key(6), (D, vocabulary))
  # The best column stands twice, far apart.
  best = int((X_BTD[0, 0] @ head_DV).argmax())
  twin = (best + vocabulary // 2) % vocabulary
  head_DV = head_DV.at[:, twin].set(head_DV[:, best])
  nll_BT, top_BT = token_nll_and_top(X_BTD, head_DV, TARGET_BT)
  np.testing.assert_allclose(nll_BT, plain_nll(X_BTD, head_DV, TARGET_BT), rtol=1e-5, atol=1e-5)
  np.testing.assert_array_equal(top_BT[0, 0], min(best, twin))
  np.testing.assert_array_equal(np.asarray(top_BT).ravel()[1:], (X_BTD @ head_DV).argmax(axis=-1).ravel()[1:])
