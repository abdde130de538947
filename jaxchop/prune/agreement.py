"""What each criterion would drop, how sure that is, and how far the criteria agree."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from jaxchop.errors import UsageError
from jaxchop.prune.resample import indistinct, stability
from jaxchop.prune.score import Score, Scores
from jaxchop.prune.select import dropped_by


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
  """One criterion's answer to: drop so many layers."""

  drop: tuple[int, ...]
  # Candidates from the first to go to the last, by the score of each alone.
  order: tuple[int, ...]
  # indistinct[i]: another draw of calibration windows may well put order[i] and order[i + 1] the other way round.
  indistinct: tuple[bool, ...]
  # Share of the resampled calibration texts that drop the same layers; None where no text was used.
  same_set: float | None


def verdicts(scores: Scores, candidates: Sequence[int], count: int) -> dict[str, Verdict]:
  """Returns {criterion: verdict}; a criterion whose scores do not reach so far is left out."""
  found = {}
  for name, score in scores.criteria.items():
    try:
      found[name] = _verdict(score, tuple(candidates), count)
    except UsageError:
      continue
  return found


def _verdict(score: Score, candidates: tuple[int, ...], count: int) -> Verdict:
  drop = dropped_by(score, candidates, count)
  order = tuple(sorted(candidates, key=lambda layer: (score.per_layer[layer], -layer)))
  same_set, ties = None, (False,) * (len(order) - 1)
  if score.bootstrap is not None:
    replicates_RL = np.array(score.bootstrap)
    ties = indistinct(replicates_RL, order)
    if score.run_share is None:
      same_set = stability(replicates_RL, drop, candidates)
    elif count:
      same_set = score.run_share[count - 1]
  return Verdict(drop=drop, order=order, indistinct=ties, same_set=same_set)


def agreement(drops: Mapping[str, Sequence[int]]) -> dict[str, dict[str, float]]:
  """Returns the share of common layers among those that either of two criteria drops (Jaccard), for all pairs."""

  def shared(a: Sequence[int], b: Sequence[int]) -> float:
    return len(set(a) & set(b)) / len(set(a) | set(b)) if a or b else 1.0

  return {one: {other: shared(a, b) for other, b in drops.items()} for one, a in drops.items()}


def usual_count(layers: int) -> int:
  """Returns how many layers to speak of where nobody said: a fifth."""
  return max(1, round(layers / 5))
