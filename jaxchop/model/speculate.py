"""Greedy speculative decoding of one prompt: a small model drafts tokens, the target reads them all in one pass.

A round drafts k tokens and takes those that are the target's own choices, and then the target's next one. So the text
is the target's greedy one, whatever the drafter is; its quality decides only how many passes that takes. Both caches
go back by their position, nothing is copied. One prompt at a time: rows that take different numbers of tokens would
not share a position. Source: Leviathan et al., arXiv 2211.17192, algorithm 1, at temperature 0.
Shapes: T prompt slots (a power of two), E end-of-sequence ids, V vocabulary, k drafted tokens.
"""

import dataclasses
import functools
from collections.abc import Collection, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxchop.compiler import Program
from jaxchop.errors import UsageError
from jaxchop.model.cache import Cache, decode, extend, prefill
from jaxchop.model.generate import check_prompts, ends, padded, power_of_two
from jaxchop.model.llama import Llama


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Speculated:
  """What came of one prompt."""

  # The new tokens, up to and including the first end-of-sequence token.
  tokens: list[int]
  # How many rounds took 0, 1, … k drafted tokens.
  rounds: tuple[int, ...]


def speculate(
  draft: Llama, target: Llama, prompt: Sequence[int], *, max_new_tokens: int, drafted: int, eos: Collection[int] = ()
) -> Speculated:
  """Returns the target's greedy continuation of a prompt, with `drafted` tokens of the drafter read at once.

  The same tokens as `generate`, but where two logits lie closer than rounding, which depends on how many tokens a pass
  reads. Compiles once for each `drafted` and each power of two that prompt and `max_new_tokens` fit in. Raises
  UsageError on an empty prompt, an id outside the vocabulary, models of different vocabularies, and positions beyond
  those that dynamic RoPE was trained on: its angles depend on what else is in a pass.
  """
  _check(draft, target, prompt, max_new_tokens, drafted)
  if not max_new_tokens:
    return Speculated(tokens=[], rounds=(0,) * (drafted + 1))
  ids_1T, first_1 = padded([prompt])
  room = power_of_two(max_new_tokens) + drafted
  state = _begin((draft, target), ids_1T, first_1, ends(eos), room=room, drafted=drafted)
  state = _continue((draft, target), state, ends(eos), np.int32(max_new_tokens), drafted=drafted)
  count = min(int(state.count), max_new_tokens)
  return Speculated(tokens=np.asarray(state.tokens)[1 : 1 + count].tolist(), rounds=tuple(state.rounds.tolist()))


def _check(draft: Llama, target: Llama, prompt: Sequence[int], max_new_tokens: int, drafted: int) -> None:
  check_prompts([prompt], target.config.vocab_size, max_new_tokens)
  if drafted < 1:
    raise UsageError(f"{drafted} drafted tokens; a round needs at least 1")
  if draft.config.vocab_size != target.config.vocab_size:
    sizes = f"{draft.config.vocab_size} and {target.config.vocab_size}"
    raise UsageError(f"drafter and target have {sizes} tokens in their vocabularies; take a drafter of the same ones")
  longest = len(prompt) + max_new_tokens + drafted
  for config in (draft.config, target.config):
    if config.rope.kind == "dynamic" and longest > config.max_positions:
      raise UsageError(
        f"{longest} positions are beyond the {config.max_positions} up to which dynamic RoPE turns all alike; "
        "shorten the prompt or max_new_tokens"
      )


class _State(NamedTuple):
  """What goes round the loop."""

  # The prompt's last token, then the new ones; behind `count` of those there may be others, which are written over.
  tokens: jax.Array
  count: jax.Array
  done: jax.Array
  rounds: jax.Array
  # Holds all but the last two tokens: the last one drafted may have been taken without the drafter reading it.
  draft: Cache
  # Holds all but the last token.
  target: Cache


Pair = tuple[Llama, Llama]


@functools.partial(Program, static_argnames=("room", "drafted"))
def _begin(models: Pair, ids_1T: jax.Array, first_1: jax.Array, eos_E: jax.Array, *, room: int, drafted: int) -> _State:
  """Returns the state after the first token; `room` more tokens have place in it."""
  slots = ids_1T.shape[1] + room
  (_, draft), (logits_1V, target) = (prefill(model, ids_1T, slots=slots, first_B=first_1) for model in models)
  token_1 = _greedy(logits_1V)
  return _State(
    tokens=jnp.zeros(1 + room, jnp.int32).at[0].set(ids_1T[0, -1]).at[1].set(token_1[0]),
    count=jnp.int32(1),
    done=jnp.isin(token_1, eos_E)[0],
    rounds=jnp.zeros(drafted + 1, jnp.int32),
    draft=_back_to(draft, draft.written - 1),
    target=target,
  )


@functools.partial(Program, static_argnames=("drafted",), donate_argnames=("state",))
def _continue(models: Pair, state: _State, eos_E: jax.Array, limit: jax.Array, *, drafted: int) -> _State:
  """Returns the state when at least `limit` tokens are written, or an end."""

  def going(state: _State) -> jax.Array:
    return (state.count < limit) & ~state.done

  return jax.lax.while_loop(going, lambda state: _round(models, state, eos_E, drafted), state)


def _round(models: Pair, state: _State, eos_E: jax.Array, drafted: int) -> _State:
  """Returns the state after one pass of the target."""
  last_2 = jax.lax.dynamic_slice_in_dim(state.tokens, state.count - 1, 2)
  guess_k, draft = _drafts(models[0], last_2, state.draft, drafted)
  x_1TD, target = extend(models[1], jnp.concatenate([last_2[1:], guess_k])[None], state.target)
  choice_T = _greedy(models[1].logits(x_1TD)[0])
  taken = jnp.cumprod(guess_k == choice_T[:-1]).sum()
  end_T = jnp.isin(choice_T, eos_E) & (jnp.arange(drafted + 1) <= taken)
  more = jnp.where(end_T.any(), jnp.argmax(end_T), taken) + 1
  return _State(
    tokens=jax.lax.dynamic_update_slice_in_dim(state.tokens, choice_T, state.count + 1, axis=0),
    count=state.count + more,
    done=end_T.any(),
    rounds=state.rounds.at[taken].add(1),
    draft=_back_to(draft, state.draft.written + more),
    target=_back_to(target, state.target.written + more),
  )


def _drafts(model: Llama, last_2: jax.Array, cache: Cache, drafted: int) -> tuple[jax.Array, Cache]:
  """Returns the drafter's greedy tokens after the last two, and its cache with all but the last of them."""
  x_1TD, cache = extend(model, last_2[None], cache)
  guess_k = jnp.zeros(drafted, jnp.int32).at[0].set(_greedy(model.logits(x_1TD[:, -1:])[0, 0]))

  def step(at: jax.Array, state: tuple[jax.Array, Cache]) -> tuple[jax.Array, Cache]:
    guess_k, cache = state
    logits_1V, cache = decode(model, guess_k[at - 1][None], cache)
    return guess_k.at[at].set(_greedy(logits_1V[0])), cache

  return jax.lax.fori_loop(1, drafted, step, (guess_k, cache))


def _greedy(logits_V: jax.Array) -> jax.Array:
  return jnp.argmax(logits_V, axis=-1).astype(jnp.int32)


def _back_to(cache: Cache, written: jax.Array) -> Cache:
  return dataclasses.replace(cache, written=written)
