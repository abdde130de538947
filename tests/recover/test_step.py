"""One step: the same however it is laid out, and nothing at all when it cannot be right."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny_run import records, settings, tiny_model

from jaxchop.compiler import compiler_options
from jaxchop.data.batch import Batch, batch_of
from jaxchop.errors import UsageError
from jaxchop.model.tree import flatten
from jaxchop.recover.objective import summed_loss
from jaxchop.recover.step import init_optimizer, make_step, mean_loss_and_gradient

WAYS = [
  ("scan", "dots", 2),
  ("scan", "full", 1),
  ("scan", "full", 4),
  ("unrolled", "dots", 1),
  ("unrolled", "dots", 4),
  ("unrolled", "full", 2),
]


def uneven() -> Batch:
  """A batch whose micro-batches hold different numbers of tokens."""
  ids = records(3)
  return Batch(ids, (np.arange(12) < np.array([[12], [7], [1], [5]])).astype(np.float32))


def stepped(
  batch: Batch, *, skipped: int = 0, limit: float = np.inf, steps: int = 1, layers: int = 3, **changes: object
):
  config, model = settings(**changes), tiny_model(layers)
  opt_state, step = init_optimizer(config, model), jax.jit(make_step(config))
  for _ in range(steps):
    model, opt_state, metrics = step(model, opt_state, batch, skipped, limit)
  return model, opt_state, metrics


def logits_at_once(chunk: int) -> int:
  """Returns the tokens of the largest array of logits in a step of 48 tokens."""
  config, model = settings(loss_chunk=chunk), tiny_model(1)
  text = jax.jit(make_step(config)).lower(model, init_optimizer(config, model), batch_of(records(0))).as_text()
  return max(int(tokens) for tokens in re.findall(rf"tensor<{model.config.vocab_size}x(\d+)xf32>", text))


def gradient(layout: str, remat: str, accumulate: int):
  loss_of = partial(summed_loss, layout=layout, remat=remat)
  return jax.jit(partial(mean_loss_and_gradient, loss_of, accumulate=accumulate))(tiny_model(2), uneven())


@pytest.fixture(scope="module")
def reference():
  return gradient("scan", "dots", 1)


@pytest.mark.parametrize(("layout", "remat", "accumulate"), WAYS)
def test_every_way_to_compute_a_step_gives_the_same(reference, layout: str, remat: str, accumulate: int) -> None:
  loss, grads = gradient(layout, remat, accumulate)
  np.testing.assert_allclose(loss, reference[0], rtol=2e-6)
  for name, grad in flatten(grads).items():
    np.testing.assert_allclose(grad, flatten(reference[1])[name], rtol=1e-4, atol=1e-6, err_msg=name)


def test_the_layout_and_accumulation_of_the_settings_are_those_of_the_step(reference) -> None:
  _, _, metrics = stepped(uneven(), layers=2, layout="unrolled", accumulate=2)
  np.testing.assert_allclose(metrics.loss, reference[0], rtol=2e-6)
  np.testing.assert_allclose(metrics.grad_norm, optax.tree.norm(reference[1]), rtol=1e-5)


@pytest.mark.optimised
def test_on_a_cpu_parameters_and_moments_are_updated_where_they_lie() -> None:
  config, model = settings(), tiny_model(2)
  program = jax.jit(make_step(config), donate_argnums=(0, 1), compiler_options=compiler_options())
  text = program.lower(model, init_optimizer(config, model), batch_of(records(1))).compile().as_text()
  assert " fusion(" in text
  assert not re.findall(r" copy\(.*kernel.*", text)


def test_micro_batches_count_by_their_tokens() -> None:
  sizes = {1: jnp.float32(2), 7: jnp.float32(10)}

  def loss_of(model, batch):
    return jnp.sum(batch.weight * model["w"] * batch.ids[:, 1:])

  batch = Batch(np.array([[0, 1, 1], [0, 7, 7]]), np.array([[1.0, 1.0], [1.0, 0.0]], np.float32))
  for accumulate in (1, 2):
    loss, grads = mean_loss_and_gradient(loss_of, {"w": sizes[1]}, batch, accumulate)
    assert loss == pytest.approx(2 * (1 + 1 + 7) / 3) and grads["w"] == pytest.approx(9 / 3)


@pytest.mark.parametrize("weight", [np.nan, np.inf, 0.0])
def test_a_step_that_is_not_finite_changes_nothing(weight: float) -> None:
  batch = batch_of(records(0))._replace(weight=np.full((4, 12), weight, np.float32))
  model, opt_state, metrics = stepped(batch)
  assert not metrics.applied
  jax.tree.map(np.testing.assert_array_equal, model, tiny_model())
  jax.tree.map(np.testing.assert_array_equal, opt_state, init_optimizer(settings(), tiny_model()))


def test_a_step_behind_one_that_stops_the_run_changes_nothing() -> None:
  model, _, metrics = stepped(batch_of(records(0)), skipped=1)
  assert not metrics.applied and metrics.skipped == 1 and np.isfinite(metrics.loss)
  jax.tree.map(np.testing.assert_array_equal, model, tiny_model())


def test_a_step_behind_as_many_skipped_ones_as_are_allowed_is_done() -> None:
  _, _, metrics = stepped(batch_of(records(0)), skipped=2, skip_nonfinite=2)
  assert metrics.applied and metrics.skipped == 0
  bad = batch_of(records(0))._replace(weight=np.full((4, 12), np.nan, np.float32))
  _, _, metrics = stepped(bad, skipped=1, skip_nonfinite=2)
  assert not metrics.applied and metrics.skipped == 2


def test_a_step_whose_loss_is_above_the_limit_changes_nothing() -> None:
  loss = stepped(batch_of(records(0)))[2].loss
  assert stepped(batch_of(records(0)), limit=loss)[2].applied
  model, opt_state, metrics = stepped(batch_of(records(0)), limit=np.nextafter(loss, 0))
  assert not metrics.applied and metrics.skipped == 0
  jax.tree.map(np.testing.assert_array_equal, model, tiny_model())
  jax.tree.map(np.testing.assert_array_equal, opt_state, init_optimizer(settings(), tiny_model()))


def test_an_infinite_gradient_of_a_finite_loss_is_noticed() -> None:
  model, config = tiny_model(), settings()
  # The root of the mean square is so small that its derivative overflows, while the norm's output does not.
  model.norm.scale.set_value(model.norm.scale[...] * 1e38)
  _, _, metrics = jax.jit(make_step(config))(model, init_optimizer(config, model), batch_of(records(0)))
  assert not metrics.applied


def test_the_loss_falls_on_what_can_be_learned() -> None:
  first, last = (stepped(batch_of(records(0)), steps=n)[2].loss for n in (1, 15))
  assert last < 0.8 * first


def test_the_learning_rate_told_is_the_one_used() -> None:
  assert stepped(batch_of(records(0)), steps=3)[2].learning_rate == pytest.approx(1e-2 * 3 / 4)


def test_z_loss_pulls_the_logits_and_leaves_the_loss_that_is_told() -> None:
  plain, pulled = (stepped(batch_of(records(0)), z_loss=z)[2] for z in (0.0, 0.1))
  assert plain.loss == pulled.loss and abs(plain.grad_norm - pulled.grad_norm) > 1e-3


def test_logits_of_fewer_tokens_at_once_are_the_same_step() -> None:
  (_, _, whole), (_, _, parts) = (stepped(batch_of(records(0)), loss_chunk=chunk) for chunk in (1024, 5))
  np.testing.assert_allclose(parts[:2], whole[:2], rtol=1e-6)
  assert logits_at_once(5) < logits_at_once(48) == logits_at_once(1024)


def test_accumulation_must_divide_the_batch() -> None:
  with pytest.raises(UsageError, match=r"recover\.accumulate is 3.*recover\.batch_size 4"):
    make_step(settings(accumulate=3))
