"""A pruned model as the drafter of its own original: how many of its tokens are taken, and what that gains.

The question of SD², arXiv 2504.08838, with the target's greedy text, so that nothing changes but the time.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from jaxchop.errors import UsageError
from jaxchop.evaluate.spread import Spread, spread
from jaxchop.model.generate import generate
from jaxchop.model.llama import Llama
from jaxchop.model.speculate import Speculated, speculate
from jaxchop.progress import stage


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Drafted:
  """What a drafter gave at one draft length, over all prompts."""

  # Tokens that a round drafts.
  drafted: int
  # Of them taken in a round, on average, and how many rounds took 0, 1, … of them.
  accepted: float
  rounds: tuple[int, ...]
  # New tokens for each pass of the target.
  tokens_per_pass: float
  # New tokens a second, from the prompt's ids to the last of them, of the median time.
  tokens_per_second: float
  # How many times as fast as the target alone, prompt by prompt.
  gain: Spread
  # Prompts, by number, whose text is not the target's greedy one, with the place of the first other token.
  differing: dict[int, int]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Drafting:
  """A drafter's results at each draft length."""

  target_tokens_per_second: float
  lengths: tuple[Drafted, ...]
  # What was measured, in words.
  protocol: str


def measure_drafting(
  draft: Llama, target: Llama, ids_NT: np.ndarray, *, drafted: Sequence[int], new_tokens: int, repeats: int
) -> Drafting:
  """Returns how a drafter does on prompts of real text, one at a time; target and draft lengths take turns.

  All write `new_tokens` tokens, EOS or not, and what they write is compared. Raises UsageError when a count is below 1,
  and where `speculate` does.
  """
  for name, count in {"drafted": min(drafted, default=0), "new_tokens": new_tokens, "repeats": repeats}.items():
    if count < 1:
      raise UsageError(f"{name} is {count}; give at least 1")
  alone: list[float] = []
  seconds: dict[int, list[float]] = {length: [] for length in drafted}
  found: dict[int, list[Speculated]] = {length: [] for length in drafted}
  texts: list[list[int]] = []
  prompts = ids_NT.tolist()
  turns = [(repeat, prompt) for repeat in range(repeats) for prompt in prompts]
  with stage("drafting", 1 + len(turns), "prompts") as bar:
    for repeat, prompt in [(-1, prompts[0]), *turns]:
      text, *taken = _turn(draft, target, prompt, drafted, new_tokens)
      if repeat == 0:
        texts.append(text[0])
        for length, (one, _) in zip(drafted, taken, strict=True):
          found[length].append(one)
      if repeat >= 0:
        alone.append(text[1])
        for length, (_, spent) in zip(drafted, taken, strict=True):
          seconds[length].append(spent)
      bar.advance()
  return Drafting(
    target_tokens_per_second=new_tokens / spread(alone).median,
    lengths=tuple(_drafted(length, found[length], texts, seconds[length], alone, new_tokens) for length in seconds),
    protocol=_protocol(target, ids_NT, new_tokens, repeats),
  )


def _turn(draft: Llama, target: Llama, prompt: list[int], drafted: Sequence[int], new_tokens: int) -> list[Any]:
  """Returns what the target alone wrote, and what each draft length gave, each with its seconds."""
  greedy = _timed(lambda: generate(target, [prompt], max_new_tokens=new_tokens)[0])
  return [greedy] + [
    _timed(functools.partial(speculate, draft, target, prompt, max_new_tokens=new_tokens, drafted=length))
    for length in drafted
  ]


def _drafted(
  length: int,
  found: Sequence[Speculated],
  texts: Sequence[list[int]],
  seconds: list[float],
  alone: list[float],
  new: int,
) -> Drafted:
  rounds = np.sum([one.rounds for one in found], axis=0)
  accepted = float(rounds @ np.arange(length + 1) / max(1, rounds.sum()))
  pairs = [(one.tokens, text) for one, text in zip(found, texts, strict=True)]
  return Drafted(
    drafted=length,
    accepted=accepted,
    rounds=tuple(rounds.tolist()),
    tokens_per_pass=accepted + 1,
    tokens_per_second=new / spread(seconds).median,
    gain=spread([own / taken for own, taken in zip(alone, seconds, strict=True)]),
    differing={number: _first_apart(*pair) for number, pair in enumerate(pairs) if pair[0] != pair[1]},
  )


def _first_apart(a: Sequence[int], b: Sequence[int]) -> int:
  return next((at for at, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _timed(run: Callable[[], Any]) -> tuple[Any, float]:
  start = time.perf_counter()
  result = run()
  return result, time.perf_counter() - start


def _protocol(target: Llama, ids_NT: np.ndarray, new_tokens: int, repeats: int) -> str:
  times = "once" if repeats == 1 else f"{repeats} times"
  return (
    f"{len(ids_NT)} held-out prompts of {ids_NT.shape[1]} tokens, one at a time, {new_tokens} greedy tokens each, EOS "
    f"or not; prompt included; {target.embedding.dtype} on {jax.devices()[0].device_kind}; {times} each after "
    "a warm-up, target and draft lengths in turn"
  )
