"""`jaxchop compare`: several ways back from one pruned model, on the same text, at equal tokens and at equal FLOPs.

A run is made once a way, budget and seed, in rounds of all ways, so that what stands after an interruption can be
compared; what stands is not made again.
"""

import bisect
import functools
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from jaxchop.config import Recipe
from jaxchop.files import locked, write_bytes, write_json, write_text
from jaxchop.report import ways as report
from jaxchop.trials import Trials
from jaxchop.versions import machine, versions

Budget = Literal["tokens", "flops"]
log = logging.getLogger("jaxchop")


def compare(
  ways: Mapping[str, Recipe],
  out: Path,
  *,
  tokens: int | None = None,
  budgets: Sequence[Budget] = ("tokens", "flops"),
  seeds: Sequence[int] = (0,),
) -> dict[str, Any]:
  """Runs all ways and returns what compare.json holds; it is written anew after each run, with a table and a plot.

  For the budget `tokens` each way trains on so many, or for the steps that its recipe names; for `flops`, for as many
  steps as cost what the first way costs with its tokens; what a teacher does or writes counts. The others are held
  against that first way. One whose recipe keeps all layers is a control: it shows what the text does to a model that
  was not pruned. Raises UsageError where recipes do not share model, text, pruning and measuring.
  """
  with locked(out):
    trials = Trials(ways, out)
    before, done = trials.before(), []
    found: dict[str, Any] = {}
    runs = [(seed, budget, way) for seed in seeds for budget in budgets for way in ways]
    for number, (seed, budget, way) in enumerate(runs, start=1):
      steps = _steps(trials, way, budget, tokens)
      log.info("Run %d of %d: %s, seed %d, %d steps (equal %s)", number, len(runs), way, seed, steps, budget)
      done.append({"way": way, "budget": budget, "seed": seed, **trials.result(way, steps, seed)})
      found = {
        "plan": trials.plan.words,
        "protocol": str(trials.protocol),
        **before,
        "rows": report.rows(done, before),
        "runs": done,
        "left": len(runs) - number,
        "versions": versions(),
        "machine": machine(),
      }
      write_json(out / "compare.json", found)
      write_text(out / "compare.md", report.markdown(found))
      write_bytes(out / "compare.png", report.plot(found))
  return found | {"folder": str(out)}


def _steps(trials: Trials, way: str, budget: Budget, tokens: int | None) -> int:
  """Returns for how many steps a way trains."""
  recover = trials.ways[way].recover
  a_step = recover.batch_size * recover.seq_len
  if budget == "tokens":
    return recover.steps if tokens is None else max(round(tokens / a_step), 1)
  spent = trials.flops(trials.first, _steps(trials, trials.first, "tokens", tokens))
  most = math.ceil(spent / (a_step * trials.flops_per_token[way]))
  flops = functools.partial(trials.flops, way)
  enough = bisect.bisect_left(range(most), spent, lo=1, key=flops)
  return min(max(enough - 1, 1), enough, key=lambda steps: abs(flops(steps) - spent))
