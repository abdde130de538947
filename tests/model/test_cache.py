"""A cache changes what is computed when, never what comes out."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import tiny_llama

from jaxchop.errors import UsageError
from jaxchop.model.cache import decode, extend, prefill

READ, MORE, STEP = jax.jit(prefill, static_argnames="slots"), jax.jit(extend), jax.jit(decode)
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


def test_several_tokens_at_once_are_as_one_after_the_other():
  model, first_B = tiny_llama(), jnp.array([0, 1])
  _, cache = READ(model, IDS_BT[:, :3], slots=10, first_B=first_B)
  x_BTD, after = MORE(model, IDS_BT[:, 3:], cache)
  singly, alone = [], cache
  for column in IDS_BT[:, 3:].T:
    logits_BV, alone = STEP(model, column, alone)
    singly.append(logits_BV)
  np.testing.assert_allclose(model.logits(x_BTD), jnp.stack(singly, axis=1), atol=1e-4)
  assert after.written == alone.written
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), after, alone)


def test_what_was_taken_back_is_as_if_it_had_never_been():
  model = tiny_llama()
  _, cache = READ(model, IDS_BT[:, :4], slots=9)
  _, longer = MORE(model, IDS_BT[:, 5:8], cache)
  back = dataclasses.replace(longer, written=cache.written + 1)
  _, expected = STEP(model, IDS_BT[:, 5], cache)
  found, _ = STEP(model, IDS_BT[:, 8], back)
  np.testing.assert_allclose(found, STEP(model, IDS_BT[:, 8], expected)[0], atol=1e-4)


def test_more_tokens_than_there_is_room_for_give_nan():
  model = tiny_llama()
  _, cache = READ(model, IDS_BT[:, :4], slots=6)
  assert jnp.isfinite(MORE(model, IDS_BT[:, 4:6], cache)[0]).all()
  assert jnp.isnan(MORE(model, IDS_BT[:, 4:7], cache)[0]).all()


@pytest.mark.parametrize("rows", [1, 2])
def test_a_loop_of_decoding_writes_into_the_cache_it_was_given_and_never_copies_it(rows):
  model = tiny_llama()
  _, cache = READ(model, IDS_BT[:rows], slots=16)

  def write(model, ids_B, cache):
    return jax.lax.fori_loop(0, 5, lambda _, state: decode(model, state[0].argmax(-1), state[1]), (ids_B, cache))

  loop = jax.jit(write, donate_argnums=(1, 2)).lower(model, jnp.zeros((rows, 50)), cache).compile()
  layers = (*cache.keys, *cache.values)
  assert loop.memory_analysis().alias_size_in_bytes >= sum(leaf.nbytes for leaf in layers)
  for leaf in layers:
    assert not re.findall(rf"f32\[{','.join(map(str, leaf.shape))}\]\S* copy\(", loop.as_text())
