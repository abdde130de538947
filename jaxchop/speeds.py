"""What `jaxchop speed` measures: models side by side over batch sizes and lengths, or a drafter with its target."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from jaxchop.config import DataConfig
from jaxchop.data.texts import read_splits
from jaxchop.data.windows import first_windows
from jaxchop.errors import UsageError
from jaxchop.evaluate.drafting import measure_drafting
from jaxchop.evaluate.ideal import gain
from jaxchop.evaluate.speed import compare_speed, peak_memory
from jaxchop.evaluate.speed_protocols import OWN, PROTOCOLS, Grid
from jaxchop.model.llama import Llama
from jaxchop.subject import Subject


def speeds(
  names: Sequence[str],
  *,
  protocol: str | None = None,
  batch: Sequence[int] | None = None,
  prompt_tokens: Sequence[int] | None = None,
  new_tokens: Sequence[int] | None = None,
  repeats: int | None = None,
  warm_up: int | None = None,
) -> dict[str, Any]:
  """Returns every model's speed at every point, what layers fewer than the first one's gained, and the peak memory.

  What is None is the protocol's; a number given beside a protocol is the most that it may take. Raises UsageError when
  a count is too small.
  """
  models = {name: Subject(name).load() for name in names}
  asked = {"batch": batch, "prompt_tokens": prompt_tokens, "new_tokens": new_tokens}
  counts = {"repeats": repeats, "warm_up": warm_up}
  if protocol is None:
    given: dict[str, Any] = {name: tuple(numbers) for name, numbers in asked.items() if numbers is not None}
    given |= {name: number for name, number in counts.items() if number is not None}
    grids, words = (dataclasses.replace(OWN, **given),), None
  else:
    paper = PROTOCOLS[protocol].within(**asked, **counts)
    grids, words = paper.grids, paper.words
  rows = [row for grid in grids for row in _rows(models, grid)]
  return {"models": rows, "memory": peak_memory(), "paper": words}


def _rows(models: Mapping[str, Llama], grid: Grid) -> list[dict[str, Any]]:
  rows = []
  for point in grid.points():
    found = compare_speed(models, **point)
    first = next(iter(models))
    for name, one in found.items():
      gained = gain(models[first], models[name], found[first], one)
      rows.append({"path": name, **dataclasses.asdict(one), "gain": gained and dataclasses.asdict(gained)})
  return rows


def drafting(
  draft: str,
  target: str,
  data: DataConfig,
  *,
  drafted: Sequence[int],
  prompts: int,
  prompt_tokens: int,
  new_tokens: int,
  repeats: int,
) -> dict[str, Any]:
  """Returns how a model does as the drafter of another one, on held-out text.

  Raises UsageError when a count is below 1, and when both have other tokenizers.
  """
  small, large = Subject(draft), Subject(target)
  if small.tokenizer.get_vocab() != large.tokenizer.get_vocab():
    raise UsageError(
      f"--draft {draft}: its tokenizer is not that of {target}; take a drafter that reads the same tokens"
    )
  for name, count in {"prompts": prompts, "prompt_tokens": prompt_tokens}.items():
    if count < 1:
      raise UsageError(f"{name} is {count}; give at least 1")
  ids_NT = first_windows(
    read_splits(data).held_out,
    large.tokenizer,
    count=prompts,
    length=prompt_tokens,
    eos=large.eos[0],
    use="held_out",
    setting="--prompts",
  )
  found = measure_drafting(small.load(), large.load(), ids_NT, drafted=drafted, new_tokens=new_tokens, repeats=repeats)
  return {"draft": draft, "target": target, **dataclasses.asdict(found), "memory": peak_memory()}
