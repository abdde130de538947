"""The learning rate's course, and which weights decay."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_run import CONFIG, tiny_model

from jaxchop.errors import UsageError
from jaxchop.model.tree import flatten
from jaxchop.recover.optimizer import decayed, learning_rate, make_optimizer, updates_done
from jaxchop.recover.trainable import way_of
from jaxchop.training import GroupConfig, OptimizerConfig, RecoverConfig


def rates(steps: int, **changes: float) -> np.ndarray:
  config = OptimizerConfig(**{"learning_rate": 2.0, **changes})
  # One length for all, so that nothing is compiled twice.
  return np.asarray(learning_rate(config, steps)(jnp.arange(256)))[:steps]


@given(st.integers(1, 200), st.integers(0, 60), st.floats(0.01, 1))
def test_the_rate_rises_to_its_highest_and_falls_to_its_share(steps: int, warmup: int, share: float) -> None:
  rate = rates(steps, warmup_steps=warmup, final_share=share)
  top = min(max(warmup, 1), steps)
  assert (rate > 0).all() and (rate <= 2.0 + 1e-6).all()
  assert (np.diff(rate[:top]) > 0).all() and (np.diff(rate[top:]) <= 1e-6).all()
  if warmup < steps:
    assert rate[-1] == pytest.approx(2.0 * share, rel=1e-5)


def test_the_rate_warms_up_in_equal_steps_and_is_halfway_down_in_the_middle() -> None:
  rate = rates(24, warmup_steps=4, final_share=0.0)
  np.testing.assert_allclose(rate[:4], [0.5, 1.0, 1.5, 2.0], rtol=1e-6)
  assert rate[13] == pytest.approx(1.0)


@pytest.mark.parametrize("schedule", ["cosine", "linear", "wsd"])
def test_every_schedule_that_falls_ends_at_its_share(schedule: str) -> None:
  rate = rates(100, schedule=schedule, final_share=0.25)
  assert rate[9] == 2.0 and rate[-1] == pytest.approx(0.5)


def test_a_constant_rate_stays_and_a_linear_one_falls_evenly() -> None:
  assert (rates(100, schedule="constant")[9:] == 2.0).all()
  np.testing.assert_allclose(np.diff(rates(100, schedule="linear", final_share=0.1)[9:]), -1.8 / 90, rtol=1e-4)


def test_warm_up_stable_decay_stays_until_its_last_share() -> None:
  rate = rates(100, schedule="wsd", decay_share=0.3, final_share=0.0)
  assert (rate[9:70] == 2.0).all()
  np.testing.assert_allclose(rate[70:], 2.0 * (1 - np.arange(1, 31) / 30), atol=1e-6)


def test_up_to_its_decay_a_longer_stable_run_is_the_same_run() -> None:
  np.testing.assert_array_equal(rates(100, schedule="wsd")[:80], rates(200, schedule="wsd")[:80])


@pytest.mark.parametrize("share", [0.0, 1.5, -0.1])
def test_a_decay_of_no_step_or_more_than_all_is_refused(share: float) -> None:
  with pytest.raises(UsageError, match=f"recover.optimizer.decay_share is {share}; it is above 0"):
    rates(100, decay_share=share)


def test_matrices_decay_and_norms_and_biases_do_not() -> None:
  model = tiny_model(2, config=dataclasses.replace(CONFIG, attention_bias=True, mlp_bias=True, tied=False))
  spared = {name.rsplit(".", 1)[-1] for name, mask in flatten(decayed(model)).items() if not mask}
  kept = {name.rsplit(".", 1)[-1] for name, mask in flatten(decayed(model)).items() if mask}
  assert spared == {"scale", "bias"} and kept == {"kernel", "embedding", "head"}


def test_an_update_without_gradient_only_decays() -> None:
  config = OptimizerConfig(learning_rate=1.0, warmup_steps=0, weight_decay=0.5, final_share=1.0)
  optimizer, params = make_optimizer(config, 10), {"w": jnp.ones((2, 2)), "scale": jnp.ones(2)}
  updates, state = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
  np.testing.assert_array_equal(updates["w"], -0.5)
  np.testing.assert_array_equal(updates["scale"], 0.0)
  assert updates_done(state) == 1


def first_update(kind: str, gradient: dict[str, jax.Array], params: dict[str, jax.Array]) -> dict[str, np.ndarray]:
  """Returns the first update at rate 1, without decay or clipping."""
  config = OptimizerConfig(kind=kind, learning_rate=1.0, warmup_steps=0, weight_decay=0.0, clip_norm=1e9)
  optimizer = make_optimizer(dataclasses.replace(config, schedule="constant"), 10)
  updates, state = optimizer.update(gradient, optimizer.init(params), params)
  assert updates_done(state) == 1
  return jax.tree.map(np.asarray, updates)


def matrices(*shape: int) -> jax.Array:
  return jax.random.normal(jax.random.key(0), shape)


@pytest.mark.parametrize(("limit", "share"), [(1.0, 0.2), (5.0, 1.0), (6.0, 1.0), (float("inf"), 1.0)])
def test_gradients_longer_than_the_limit_keep_their_direction_and_an_infinite_one_is_none(limit, share) -> None:
  config = OptimizerConfig(clip_norm=limit)
  optimizer, gradient = make_optimizer(config, 10), {"w": jnp.array([[3.0, 0.0]]), "scale": jnp.array([-4.0])}
  _, state = optimizer.update(gradient, optimizer.init(gradient), gradient)
  moment = optax.tree.get(state, "mu")
  for name, value in gradient.items():
    np.testing.assert_allclose(moment[name], (1 - config.beta1) * share * value, rtol=1e-6)


@pytest.mark.parametrize("kind", ["adamw", "lion"])
def test_the_first_update_of_adam_and_lion_is_the_sign_of_the_gradient(kind: str) -> None:
  gradient = {"w": matrices(8, 4)}
  found = first_update(kind, gradient, {"w": jnp.zeros((8, 4))})
  np.testing.assert_allclose(found["w"], -np.sign(gradient["w"]), rtol=1e-4)


def test_the_first_update_of_adafactor_divides_by_the_root_of_row_and_column_means() -> None:
  g_IO = np.asarray(matrices(128, 256), np.float64)
  found = first_update("adafactor", {"w": jnp.asarray(g_IO, jnp.float32)}, {"w": jnp.zeros((128, 256))})
  square_IO = g_IO**2
  second_IO = square_IO.mean(1, keepdims=True) * square_IO.mean(0) / square_IO.mean()
  expected = g_IO / np.sqrt(second_IO)
  np.testing.assert_allclose(found["w"], -expected / max(1.0, np.sqrt((expected**2).mean())), rtol=1e-3)


def test_muon_moves_kernels_along_their_singular_vectors_as_far_as_adam_and_the_rest_by_adam() -> None:
  model = tiny_model(1, config=dataclasses.replace(CONFIG, width=24, mlp_width=48))
  gradient = jax.tree.map(lambda p: jax.random.normal(jax.random.key(1), p.shape), model)
  found = flatten(first_update("muon", gradient, model))
  g_IO = flatten(gradient)["layers.0.mlp.up.kernel"]
  left, _, right = np.linalg.svd(np.asarray(g_IO, np.float64), full_matrices=False)
  along = np.diag(left.T @ -found["layers.0.mlp.up.kernel"].astype(np.float64) @ right.T)
  # Newton and Schulz's iteration, as it is used, ends with singular values between about 0.7 and 1.2.
  assert (along > 0.6 * 0.2 * 48**0.5).all() and (along < 1.3 * 0.2 * 48**0.5).all()
  for name in ("embedding", "norm.scale", "layers.0.attention_norm.scale"):
    np.testing.assert_allclose(found[name], -np.sign(flatten(gradient)[name]), rtol=1e-4)


def test_a_group_has_its_own_rate_and_decay_and_follows_the_schedule() -> None:
  norms = GroupConfig(match=r".*norm\.scale", learning_rate=0.0)
  heads = GroupConfig(match="embedding|head", learning_rate=1e-4, weight_decay=0.0)
  rest = GroupConfig(match=r"layers\..*", weight_decay=0.0, learning_rate=5e-3)
  plain, grouped = OptimizerConfig(learning_rate=1e-3), OptimizerConfig(learning_rate=1e-3, groups=(norms, heads, rest))
  model = tiny_model()
  grads = jax.tree.map(jnp.ones_like, model)
  found = []
  for config in (plain, dataclasses.replace(plain, weight_decay=0.0), grouped):
    optimizer = make_optimizer(config, 20)
    found.append(flatten(optimizer.update(grads, optimizer.init(model), model)[0]))
  decaying, bare, own = found
  assert not np.any(own["norm.scale"]) and not np.any(own["layers.1.mlp_norm.scale"])
  np.testing.assert_allclose(own["embedding"], 0.1 * bare["embedding"], rtol=1e-6)
  np.testing.assert_allclose(own["layers.0.mlp.up.kernel"], 5 * bare["layers.0.mlp.up.kernel"], rtol=1e-6)
  assert np.any(decaying["embedding"] != bare["embedding"])


def test_a_group_that_names_nothing_is_refused() -> None:
  groups = (GroupConfig(match=r"layers\.7\..*", learning_rate=1e-4),)
  with pytest.raises(UsageError, match=r"recover\.optimizer\.groups: .* fits no whole name of a parameter; there are"):
    way_of(RecoverConfig(optimizer=OptimizerConfig(groups=groups)), CONFIG, 3)
  with pytest.raises(UsageError, match=r"recover\.optimizer\.learning_rate is 0"):
    make_optimizer(OptimizerConfig(learning_rate=0.0, groups=groups), 3)
