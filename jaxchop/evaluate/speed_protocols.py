"""At which batch sizes and lengths speed is measured: a grid of one's own, or what a paper measured."""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Grid:
  """Every batch size with every length."""

  batch: tuple[int, ...]
  prompt_tokens: tuple[int, ...]
  new_tokens: tuple[int, ...]
  repeats: int
  warm_up: int

  def points(self) -> Iterator[dict[str, int]]:
    """Yields the arguments of `compare_speed`, point by point."""
    for batch, prompt, new in itertools.product(self.batch, self.prompt_tokens, self.new_tokens):
      yield {
        "batch": batch,
        "prompt_tokens": prompt,
        "new_tokens": new,
        "repeats": self.repeats,
        "warm_up": self.warm_up,
      }


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Protocol:
  """What was measured together, and where ours departs from it, in words."""

  grids: tuple[Grid, ...]
  words: str

  def within(self, **limits: Sequence[int] | int | None) -> "Protocol":
    """Returns it with nothing larger than the (largest) number given; None leaves as it is."""
    return dataclasses.replace(self, grids=tuple(_within(grid, limits) for grid in self.grids))


def _within(grid: Grid, limits: dict[str, Sequence[int] | int | None]) -> Grid:
  changed = {}
  for name, given in limits.items():
    own = getattr(grid, name)
    if isinstance(given, int):
      changed[name] = min(own, given)
    elif given is not None:
      changed[name] = tuple(dict.fromkeys(min(number, max(given)) for number in own))
  return dataclasses.replace(grid, **changed)


OWN = Grid(batch=(1,), prompt_tokens=(128,), new_tokens=(32,), repeats=5, warm_up=1)

PROTOCOLS = {
  # Source: SLEB, arXiv 2402.09025, and utils/latency_utils.py of its repository at d07129a.
  "sleb": Protocol(
    grids=(
      Grid(batch=(1,), prompt_tokens=(2048,), new_tokens=(0,), repeats=50, warm_up=1),
      Grid(batch=(64,), prompt_tokens=(64,), new_tokens=(128,), repeats=10, warm_up=1),
    ),
    words="SLEB: milliseconds of a prompt without a cache, tokens/s of a whole call that writes; random tokens; the "
    "paper takes means, one model after the other, where this takes medians in turn (--json has the means)",
  ),
  # Source: Shortened LLaMA, arXiv 2402.02834, and src/gen_batch_eval_time.py and script/measure_time.sh of its
  # repository at 4031a92.
  "shortened_llama": Protocol(
    grids=(
      Grid(batch=(1, 8, 16, 32, 64, 128, 256), prompt_tokens=(12,), new_tokens=(128, 512), repeats=20, warm_up=10),
    ),
    words="Shortened LLaMA: seconds and tokens/s of a whole call that writes to a fixed length; there one prompt of 12 "
    "tokens in all rows, sampled, means of one model after the other; here random tokens, greedy, medians in turn "
    "(--json has the means)",
  ),
}
