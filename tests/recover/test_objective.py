"""What is minimised: the plain cross-entropy of the next token, weighted, however it is computed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_run import records, tiny_model

from jaxchop.data.batch import Batch, batch_of
from jaxchop.model.tree import flatten
from jaxchop.parallel.mesh import make_mesh
from jaxchop.parallel.sharding import rows, spread
from jaxchop.recover.objective import summed_loss
from jaxchop.training import MeshConfig


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


def documents(*lengths: int) -> Batch:
  """One row that holds documents of so many tokens, kept apart."""
  size = sum(lengths)
  segments = np.repeat(np.arange(1, len(lengths) + 1), lengths)[None].astype(np.int32)
  return batch_of(records(0, rows=1, size=size), segments)


@pytest.mark.parametrize(("lengths", "layout"), [((6, 6), "scan"), ((1, 5, 1, 5), "unrolled")])
def test_documents_kept_apart_lose_what_each_loses_alone(lengths: tuple[int, ...], layout: str) -> None:
  model, batch = tiny_model(), documents(*lengths)
  loss, grads = jax.jit(jax.value_and_grad(lambda m, b: summed_loss(m, b, layout=layout)))(model, batch)
  ends = np.cumsum(lengths)
  parts = [batch_of(batch.ids[:, end - n : end]) for n, end in zip(lengths, ends, strict=True) if n > 1]
  alone = [jax.jit(jax.value_and_grad(summed_loss))(model, part) for part in parts]
  np.testing.assert_allclose(loss, sum(part[0] for part in alone), rtol=1e-6)
  want = jax.tree.map(lambda *leaves: sum(leaves), *(part[1] for part in alone))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), grads, want)


def test_segments_of_rows_on_several_devices_change_nothing() -> None:
  ids, segments = records(0), np.repeat([[1, 1, 1, 2, 2, 2, 2, 2, 3, 3, 4, 4, 4]], 4, axis=0).astype(np.int32)
  batch, model = batch_of(ids, segments), tiny_model()
  want = jax.jit(summed_loss)(model, batch)
  mesh = make_mesh(MeshConfig(data=2, fsdp=2), model.config, rows=4, length=12)
  with jax.set_mesh(mesh):
    found = jax.jit(summed_loss)(spread(model, mesh), jax.device_put(batch, rows(mesh)))
  np.testing.assert_allclose(found, want, rtol=1e-6)
