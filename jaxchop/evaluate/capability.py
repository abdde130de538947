"""What a model can still do: small generated tasks with one right answer each, from easy to hard.

Choosing among given answers hides what dropping layers does to writing: here every token of an answer is the model's
own, greedily. The items are drawn from a seed, so that all models get the same ones and nothing is downloaded.
"""

import dataclasses
import math
import random
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jaxchop.errors import UsageError
from jaxchop.evaluate.answers import Answers
from jaxchop.model.generate import generate
from jaxchop.model.llama import Llama
from jaxchop.parallel.rows import Rows
from jaxchop.progress import stage

if TYPE_CHECKING:
  from transformers import PreTrainedTokenizerBase

# What is asked, and what stands behind it when it is answered.
Item = tuple[str, str]
# Solved items in front of the one that is asked.
SHOTS = 3
_WORDS = tuple(
  word
  for line in (
    "apple arm bag ball bank bell bird boat book box bread bridge car cat chair city cloud coat cup day desk dog",
    "door dress egg eye farm field fire fish floor foot garden glass gold grass hand hat hill horse house island",
    "key king lake lamp leaf letter milk moon mouth night paper river road rock room salt sea ship snow song star",
    "stone street sun table tree wall water wind window wood",
  )
  for word in line.split()
)
_PAIRS = {"(": ")", "[": "]", "{": "}"}


def _addition(draw: random.Random, digits: int) -> Item:
  a, b = (draw.randrange(10 ** (digits - 1) if digits > 1 else 0, 10**digits) for _ in range(2))
  return f"{a} + {b} =", str(a + b)


def _brackets(draw: random.Random, depth: int) -> Item:
  opened = [draw.choice(list(_PAIRS)) for _ in range(depth)]
  return f"open {' '.join(opened)} close", " ".join(_PAIRS[one] for one in reversed(opened))


def _copying(draw: random.Random, words: int) -> Item:
  said = " ".join(draw.sample(_WORDS, words))
  return f"say {said} again:", said


def _lookup(draw: random.Random, pairs: int) -> Item:
  words = draw.sample(_WORDS, pairs)
  values = {word: draw.randrange(10, 100) for word in words}
  asked = draw.choice(words)
  return f"{', '.join(f'{word} is {value}' for word, value in values.items())}; {asked} is", str(values[asked])


def _sorting(draw: random.Random, numbers: int) -> Item:
  given = draw.sample(range(10, 100), numbers)
  return f"sort {' '.join(map(str, given))} up:", " ".join(map(str, sorted(given)))


# How to draw an item, and the sizes that make it harder and harder.
TASKS: Mapping[str, tuple[Callable[[random.Random, int], Item], tuple[int, ...]]] = {
  "addition": (_addition, (1, 2, 3, 4)),
  "brackets": (_brackets, (1, 2, 4, 6)),
  "copying": (_copying, (2, 4, 8, 12)),
  "lookup": (_lookup, (2, 4, 8, 12)),
  "sorting": (_sorting, (2, 3, 4, 6)),
}


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Capability:
  """How many of the items a model solves."""

  # Whether each item was solved, by task and by level, in the order in which they were drawn.
  solved: Mapping[str, tuple[tuple[bool, ...], ...]]
  # How it was asked, in words.
  protocol: str

  @property
  def score(self) -> float:
    """The share of all items that was solved."""
    return _share([hit for levels in self.solved.values() for level in levels for hit in level])

  @property
  def error(self) -> float:
    """The standard error of `score`: levels are what they are, the items of each are drawn."""
    levels = [level for levels in self.solved.values() for level in levels]
    variances = [_share(level) * (1 - _share(level)) / max(len(level) - 1, 1) for level in levels]
    return math.sqrt(sum(variances)) / len(levels)

  def by_task(self) -> dict[str, float]:
    """Returns the share that was solved of each task."""
    return {task: _share([hit for level in levels for hit in level]) for task, levels in self.solved.items()}

  def by_level(self, task: str) -> list[float]:
    """Returns the share that was solved of each level of a task, from easy to hard."""
    return [_share(level) for level in self.solved[task]]

  def to_json(self) -> dict[str, Any]:
    return {
      "score": self.score,
      "error": self.error,
      "tasks": {task: {"score": share, "levels": self.by_level(task)} for task, share in self.by_task().items()},
      "solved": {task: [[int(hit) for hit in level] for level in levels] for task, levels in self.solved.items()},
      "protocol": self.protocol,
    }


def prompt(task: str, level: int, number: int, seed: int = 0) -> Item:
  """Returns the prompt of one item, solved ones of its level before it, and the answer. `level` counts from 0."""
  make, sizes = TASKS[task]
  draw = random.Random(f"{seed} {task} {sizes[level]} {number}")
  shots = [make(draw, sizes[level]) for _ in range(SHOTS)]
  asked, answer = make(draw, sizes[level])
  # A solved item that is the very same would give the answer away, or break the rule that all answers are right.
  while asked in (question for question, _ in shots) and sizes[level] > 1:
    asked, answer = make(draw, sizes[level])
  return "".join(f"{question} {solution}\n" for question, solution in shots) + asked, answer


def capability(
  model: Llama,
  tokenizer: "PreTrainedTokenizerBase",
  *,
  items: int,
  eos: Collection[int],
  batch_size: int = 16,
  title: str = "Probing capability",
  answers: Answers | None = None,
) -> Capability:
  """Returns which of `items` items of each level of each task a model solves, greedily, up to the end of the line.

  With `answers` of this model, items asked before an interruption are not asked again. Raises UsageError on fewer than
  one item.
  """
  if items < 1:
    raise UsageError(f"evaluate.probe_items is {items}; ask at least one of each level")
  asked = [(task, level, number) for task in TASKS for level in range(len(TASKS[task][1])) for number in range(items)]
  pairs = [prompt(*one) for one in asked]
  prompts = [tokenizer.encode(text) for text, _ in pairs]
  # The room of the longest answer for all of them, and prompts of a length together: few programs are compiled.
  room = max(len(tokenizer.encode(f" {answer}\n")) for _, answer in pairs)
  order = sorted(range(len(asked)), key=lambda index: len(prompts[index]))
  answers, places = answers or Answers(), Rows(model, batch_size)
  hits: dict[tuple[str, int, int], bool] = {}
  with stage(title, len(asked), "items") as bar:
    for start in range(0, len(order), places.count):
      rows = order[start : start + places.count]
      full = [prompts[index] for index in [*rows, *[rows[-1]] * (places.count - len(rows))]]
      key = answers.key("probe", full, room, sorted(eos))
      new = answers.made(key, _written, model, places, tokenizer, full, room, eos)
      for index, ids in zip(rows, new, strict=False):
        written = str(tokenizer.decode(ids, skip_special_tokens=True))
        hits[asked[index]] = written.partition("\n")[0].strip() == pairs[index][1]
      bar.advance(len(rows))
  solved = {
    task: tuple(tuple(hits[task, level, number] for number in range(items)) for level in range(len(TASKS[task][1])))
    for task in TASKS
  }
  many = f"{items} items" if items > 1 else "1 item"
  words = f"{many} of each level, {SHOTS} solved ones before each, greedy, the whole line must be right"
  return Capability(solved=solved, protocol=words)


def _written(
  model: Llama,
  places: Rows,
  tokenizer: "PreTrainedTokenizerBase",
  prompts: Sequence[Sequence[int]],
  room: int,
  eos: Collection[int],
) -> list[list[int]]:
  """Returns what the model writes behind each prompt, at least up to the end of the line."""
  done = lambda _, ids: "\n" in str(tokenizer.decode(ids))  # noqa: E731
  with places.on_devices():
    return generate(model, prompts, max_new_tokens=room, eos=eos, stopped=done, place=places.place)


def _share(hits: Sequence[bool]) -> float:
  return sum(hits) / len(hits)
