"""What is minimised: the plain cross-entropy of the next token, weighted, however it is computed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_run import records, tiny_model

from jaxchop.data.batch import Batch, batch_of
from jaxchop.model.tree import flatten
from jaxchop.recover.objective import summed_loss


def plain(model: object, batch: Batch) -> jax.Array:
  """The definition, with all logits at once."""
  share = jax.nn.log_softmax(model(batch.ids[:, :-1]))
  hit = jnp.take_along_axis(share, batch.ids[:, 1:, None], axis=-1)[..., 0]
  return -jnp.sum(hit * batch.weight)


def test_the_loss_and_its_gradient_are_those_of_the_definition() -> None:
  model, batch = tiny_model(), batch_of(records(0))
  loss, grads = jax.jit(jax.value_and_grad(summed_loss))(model, batch)
  want, want_grads = jax.jit(jax.value_and_grad(plain))(model, batch)
  np.testing.assert_allclose(loss, want, rtol=1e-6)
  for name, grad in flatten(grads).items():
    np.testing.assert_allclose(grad, flatten(want_grads)[name], rtol=1e-4, atol=1e-5, err_msg=name)


def test_a_token_of_weight_zero_might_be_any_other() -> None:
  ids = records(0)
  weight = np.ones((4, 12), np.float32)
  weight[:, -3:] = 0
  other = np.concatenate([ids[:, :-3], (ids[:, -3:] + 7) % 61], axis=1)
  loss = jax.jit(jax.value_and_grad(summed_loss))
  (one, grads), (two, other_grads) = (loss(tiny_model(), Batch(i, weight)) for i in (ids, other))
  assert one == two
  jax.tree.map(np.testing.assert_array_equal, grads, other_grads)


def test_bfloat16_compute_leaves_loss_and_gradient_in_float32_and_close() -> None:
  model, batch = tiny_model(), batch_of(records(0))
  loss, grads = jax.jit(jax.value_and_grad(lambda m: summed_loss(m, batch, compute_dtype="bfloat16")))(model)
  want, want_grads = jax.jit(jax.value_and_grad(lambda m: summed_loss(m, batch)))(model)
  assert loss.dtype == jnp.float32 and {g.dtype for g in jax.tree.leaves(grads)} == {jnp.dtype("float32")}
  assert loss == pytest.approx(float(want), rel=3e-3)
  error = jax.tree.map(lambda a, b: jnp.linalg.norm(a - b) / jnp.linalg.norm(b), grads, want_grads)
  assert max(jax.tree.leaves(error)) < 0.05
