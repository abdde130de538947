"""What each scored criterion would drop, how sure that is, and how far the criteria agree."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from jaxchop.prune.agreement import agreement, usual_count, verdicts
from jaxchop.prune.scores_file import from_json
from jaxchop.report.results import Run
from jaxchop.report.scored import Score


@dataclass(frozen=True, slots=True)
class Choice:
  """One criterion's choice of layers."""

  name: str
  drop: tuple[int, ...]
  # Share of the resampled calibration texts that drop the same layers; None where it is not known.
  same_set: float | None


@dataclass(frozen=True, slots=True)
class Choices:
  """The choices of all criteria, where each may drop any `count` of the layers."""

  count: int
  layers: int
  each: tuple[Choice, ...]
  # shared[a][b]: share of common layers among those that either of two criteria drops.
  shared: tuple[tuple[float, ...], ...]


def choices(run: Run) -> Choices | None:
  """As many layers as the plan drops, a fifth where there is no plan; None where no criterion can say."""
  scores = [score for score in run.scores if _whole(score)]
  if not scores:
    return None
  layers = len(scores[0].per_layer)
  count = len(run.plan.drop) if run.plan and run.plan.drop else usual_count(layers)
  found = verdicts(from_json(_content(scores, count)), range(layers), count)
  shared = agreement({name: verdict.drop for name, verdict in found.items()})
  each = tuple(Choice(name, verdict.drop, verdict.same_set) for name, verdict in found.items())
  return Choices(count, layers, each, tuple(tuple(row.values()) for row in shared.values())) if each else None


def _whole(score: Score) -> bool:
  """Whether the score orders two layers or more."""
  values = [value for value in score.per_layer if value is not None and not math.isnan(value)]
  return len(values) == len(score.per_layer) > 1 and not any(math.isnan(value) for row in score.runs for value in row)


def _content(scores: Sequence[Score], count: int) -> dict:
  """The scores as a scores.json of today, in which nothing is absent."""
  return {
    "criteria": {
      score.name: {
        "definition": score.definition,
        "per_layer": score.per_layer,
        "interval": None,
        "run_share": score.run_share if count <= len(score.run_share) else None,
      }
      for score in scores
    },
    "windows": {score.name: score.runs for score in scores},
    "bootstrap": {score.name: score.bootstrap for score in scores if score.bootstrap},
  }
