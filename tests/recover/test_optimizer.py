"""The learning rate's course, and which weights decay."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_run import CONFIG, tiny_model

from jaxchop.config import OptimizerConfig
from jaxchop.model.tree import flatten
from jaxchop.recover.optimizer import decayed, learning_rate, make_optimizer, updates_done


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
