"""Continues prompts token by token: greedy or sampled, in batches, the whole loop one compiled program.

Shapes: B rows, T prompt slots (a power of two), E end-of-sequence ids, V vocabulary.
"""

import dataclasses
import functools
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxchop.compiler import Program
from jaxchop.errors import UsageError
from jaxchop.model.cache import Cache, decode, prefill
from jaxchop.model.llama import Llama

# How many tokens are written between two looks at the rows by whoever decides where they stop.
_LOOK = 16


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
  """How the next token is drawn: temperature first, then top-k, then top-p, as transformers does."""

  # Divides the logits; 0 takes the most probable token.
  temperature: float = 0.0
  # Draw among this many most probable tokens; 0 means all.
  top_k: int = 0
  # Draw among the fewest most probable tokens whose probabilities reach this sum.
  top_p: float = 1.0

  def __post_init__(self) -> None:
    if self.temperature < 0:
      raise UsageError(f"temperature is {self.temperature}; give 0 (greedy) or more")
    if self.top_k < 0:
      raise UsageError(f"top_k is {self.top_k}; give 0 (all tokens) or more")
    if not 0 < self.top_p <= 1:
      raise UsageError(f"top_p is {self.top_p}; give a number above 0 and up to 1")


GREEDY = Sampling()


def generate(
  model: Llama,
  prompts: Sequence[Sequence[int]],
  *,
  max_new_tokens: int,
  eos: Collection[int] = (),
  sampling: Sampling = GREEDY,
  seed: int = 0,
  streams: Sequence[int] | None = None,
  stopped: Callable[[int, list[int]], bool] | None = None,
  place: Callable[[Any], Any] = lambda rows: rows,
) -> list[list[int]]:
  """Returns the new tokens of each prompt, up to and including the first one in `eos`.

  `stopped(row, tokens)`, asked every few tokens, may end a row before that; what was written since the last look is
  still there. A row's random stream depends on (seed, its number in `streams`, step) alone; rows count from 0 unless
  numbers are given. `place` puts arrays of all rows where they belong under a mesh. Raises UsageError on an empty
  prompt and on an id outside the vocabulary. Compiles once for each power of two that the longest prompt and
  `max_new_tokens` fit in.
  """
  check_prompts(prompts, model.config.vocab_size, max_new_tokens)
  if not prompts or not max_new_tokens:
    return [[] for _ in prompts]
  ids_BT, first_B = padded(prompts)
  streams_B = np.asarray(range(len(prompts)) if streams is None else streams, np.int32)
  draw = functools.partial(_Draw, jax.random.key(seed), ends(eos))
  rows = place((ids_BT, first_B, streams_B))
  state = _begin(model, *rows[:2], draw(rows[2]), room=power_of_two(max_new_tokens), sampling=sampling)
  return _written(model, state, draw(rows[2]), max_new_tokens, sampling, stopped, place)


def check_prompts(prompts: Sequence[Sequence[int]], vocabulary: int, max_new_tokens: int) -> None:
  """Raises UsageError on an empty prompt, an id outside the vocabulary, and less than no new token."""
  if max_new_tokens < 0:
    raise UsageError(f"max_new_tokens is {max_new_tokens}; give 0 or more")
  for row, prompt in enumerate(prompts):
    if not len(prompt):
      raise UsageError(f"prompt {row} is empty; give it at least one token, such as the BOS token")
    bad = [i for i in prompt if not 0 <= i < vocabulary]
    if bad:
      raise UsageError(f"prompt {row} holds token {bad[0]}; the model knows 0..{vocabulary - 1}")


def padded(prompts: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
  """Returns ids_BT with padding on the left, T being a power of two, and the first slot first_B of each row's own."""
  lengths = np.array([len(prompt) for prompt in prompts])
  slots = power_of_two(lengths.max())
  ids_BT = np.zeros((len(prompts), slots), np.int32)
  for row, prompt in zip(ids_BT, prompts, strict=True):
    row[slots - len(prompt) :] = prompt
  return ids_BT, (slots - lengths).astype(np.int32)


def ends(eos: Collection[int]) -> np.ndarray:
  """Returns the ids filled up with -1, which no token is, so that another set of them is seldom another program."""
  ids = sorted(set(eos))
  return np.array(ids + [-1] * (max(4, power_of_two(len(ids))) - len(ids)), np.int32)


def power_of_two(at_least: int) -> int:
  """Returns the least power of two that is at least that."""
  return 1 << (int(at_least) - 1).bit_length()


class _State(NamedTuple):
  """What goes round the loop."""

  # Tokens written so far, of every row alike.
  step: jax.Array
  tokens: jax.Array
  # How many of a row's tokens count: those up to its end.
  counts: jax.Array
  done: jax.Array
  cache: Cache


class _Draw(NamedTuple):
  """What decides, beside the logits, which tokens come and which of them is a row's last."""

  key: jax.Array
  eos: np.ndarray
  streams: Any


def _written(
  model: Llama,
  state: _State,
  draw: _Draw,
  limit: int,
  sampling: Sampling,
  stopped: Callable[[int, list[int]], bool] | None,
  place: Callable[[Any], Any],
) -> list[list[int]]:
  """Runs the loop to its end, or from look to look, and returns what each row has."""
  step = 0
  while True:
    step = limit if stopped is None else min(step + _LOOK, limit)
    state = _continue(model, state, draw, np.int32(step), sampling=sampling)
    counts_B, done_B = np.asarray(state.counts), np.array(state.done)
    rows = [row[:count].tolist() for row, count in zip(np.asarray(state.tokens), counts_B, strict=True)]
    if stopped is None or step == limit:
      return rows
    done_B |= [not done and stopped(row, rows[row]) for row, done in enumerate(done_B)]
    if done_B.all():
      return rows
    state = state._replace(done=place(done_B))


def _emitted(state: _State, logits_BV: jax.Array, cache: Cache, draw: _Draw, sampling: Sampling) -> _State:
  """Returns the state with one more token a row."""
  keys_B = jax.vmap(jax.random.fold_in, (None, 0))(draw.key, draw.streams)
  token_B = choose(logits_BV, jax.vmap(jax.random.fold_in, (0, None))(keys_B, state.step), sampling)
  return _State(
    step=state.step + 1,
    tokens=jax.lax.dynamic_update_slice_in_dim(state.tokens, token_B[:, None], state.step, axis=1),
    counts=state.counts + ~state.done,
    done=state.done | jnp.isin(token_B, draw.eos),
    cache=cache,
  )


@functools.partial(Program, static_argnames=("room", "sampling"))
def _begin(
  model: Llama, ids_BT: jax.Array, first_B: jax.Array, draw: _Draw, *, room: int, sampling: Sampling
) -> _State:
  """Returns the state after each row's first token; `room` tokens have place in it."""

  logits_BV, cache = prefill(model, ids_BT, slots=ids_BT.shape[1] + room, first_B=first_B)
  # Made of the rows' own, they lie where the rows do.
  counts_B = jnp.zeros_like(first_B)
  tokens = counts_B[:, None] + jnp.zeros((1, room), jnp.int32)
  state = _State(jnp.int32(0), tokens, counts_B, counts_B > 0, cache)
  return _emitted(state, logits_BV, cache, draw, sampling)


@functools.partial(Program, static_argnames=("sampling",), donate_argnames=("state",))
def _continue(model: Llama, state: _State, draw: _Draw, until: jax.Array, *, sampling: Sampling) -> _State:
  """Returns the state when `until` tokens are written or all rows are done."""

  def going(state: _State) -> jax.Array:
    return (state.step < until) & ~state.done.all()

  def one(state: _State) -> _State:
    last_B = jax.lax.dynamic_index_in_dim(state.tokens, state.step - 1, axis=1, keepdims=False)
    return _emitted(state, *decode(model, last_B, state.cache), draw, sampling)

  return jax.lax.while_loop(going, one, state)


def choose(logits_BV: jax.Array, keys_B: jax.Array, sampling: Sampling) -> jax.Array:
  """Returns one token id a row, drawn with that row's key."""
  if sampling.temperature == 0:
    return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
  logits_BV = logits_BV.astype(jnp.float32) / sampling.temperature
  if sampling.top_k:
    least = jax.lax.top_k(logits_BV, min(sampling.top_k, logits_BV.shape[-1]))[0][:, -1:]
    logits_BV = jnp.where(logits_BV < least, -jnp.inf, logits_BV)
  if sampling.top_p < 1:
    logits_BV = jnp.where(logits_BV < _nucleus(logits_BV, sampling.top_p), -jnp.inf, logits_BV)
  return jax.vmap(jax.random.categorical)(keys_B, logits_BV).astype(jnp.int32)


def _nucleus(logits_BV: jax.Array, top_p: float) -> jax.Array:
  """Returns the least logit [B, 1] among the fewest most probable tokens that reach `top_p`."""
  sorted_BV = jnp.sort(logits_BV, axis=-1, descending=True)
  probability_BV = jax.nn.softmax(sorted_BV)
  before_BV = jnp.cumsum(probability_BV, axis=-1) - probability_BV
  return jnp.min(jnp.where(before_BV < top_p, sorted_BV, jnp.inf), axis=-1, keepdims=True)
