"""A cache changes what is computed when, never what comes out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import tiny_llama

from jaxchop.errors import UsageError
from jaxchop.model.cache import decode, prefill

IDS_BT = np.random.default_rng(0).integers(0, 50, (2, 9))


def read_and_write(model, ids_BT, prompt, slots, first_B=None):
  """Returns logits_BTV from the last prompt token on, one token at a time."""
  logits_BV, cache = jax.jit(lambda m: prefill(m, ids_BT[:, :prompt], slots=slots, first_B=first_B))(model)
  found, step = [logits_BV], jax.jit(decode)
  for column in ids_BT[:, prompt:].T:
    logits_BV, cache = step(model, jnp.asarray(column), cache)
    found.append(logits_BV)
  return jnp.stack(found, axis=1), cache


@pytest.mark.parametrize("prompt", [1, 4, 9])
def test_prompt_and_single_tokens_give_the_logits_of_the_whole(prompt):
  model = tiny_llama()
  found, cache = read_and_write(model, IDS_BT, prompt, slots=9)
  np.testing.assert_allclose(found, model(IDS_BT)[:, prompt - 1 :], atol=1e-4)
  assert cache.written == cache.slots == 9


def test_a_row_padded_on_the_left_is_as_if_alone():
  model = tiny_llama()
  padded = np.concatenate([np.full((2, 3), 7), IDS_BT], axis=1)
  found, _ = read_and_write(model, padded, 6, slots=16, first_B=jnp.array([3, 3]))
  np.testing.assert_allclose(found, model(IDS_BT)[:, 2:], atol=1e-4)


def test_a_full_cache_gives_nan_instead_of_a_wrong_token():
  found, _ = read_and_write(tiny_llama(), IDS_BT, 4, slots=8)
  assert jnp.isfinite(found[:, :-1]).all() and jnp.isnan(found[:, -1]).all()


def test_a_prompt_longer_than_the_cache_is_refused():
  with pytest.raises(UsageError, match="prompts of 9 tokens do not fit a cache of 8 slots"):
    prefill(tiny_llama(), IDS_BT, slots=8)


def test_decoding_writes_into_the_cache_it_was_given():
  model = tiny_llama()
  _, cache = prefill(model, IDS_BT, slots=16)
  step = jax.jit(decode, donate_argnums=2).lower(model, jnp.zeros(2, jnp.int32), cache).compile()
  assert step.memory_analysis().alias_size_in_bytes >= sum(leaf.nbytes for leaf in jax.tree.leaves(cache.keys)) * 2
