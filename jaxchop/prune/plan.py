"""A prune plan is a file: any stage can start from it, and it travels inside the export."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxchop.errors import JaxchopError
from jaxchop.files import read_json
from jaxchop.layers import in_words, without


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
  """Which layers of which model stay, and why."""

  # The model the indices mean: name, revision, digest.
  source: Mapping[str, Any]
  # Layers of the whole model.
  layers: int
  # Kept layers, 0-based, in order.
  keep: tuple[int, ...]
  # Rule that chose them: a criterion, a pattern, or `list`.
  criterion: str
  # The rule in words, with its source.
  definition: str
  # Calibration text behind the scores, with its digest; None where no score was used.
  data: Mapping[str, Any] | None = None

  def __post_init__(self) -> None:
    if (
      not self.keep or sorted(set(self.keep)) != list(self.keep) or not 0 <= self.keep[0] <= self.keep[-1] < self.layers
    ):
      raise JaxchopError(f"plan: keep {list(self.keep)} is no sorted list of layers of a model with {self.layers}")

  @property
  def drop(self) -> tuple[int, ...]:
    return without(self.keep, self.layers)

  @property
  def words(self) -> str:
    return in_words(self.keep, self.layers)


def to_json(plan: Plan) -> dict[str, Any]:
  """Returns the content of plan.json."""
  return {
    "source": dict(plan.source),
    "layers": plan.layers,
    "keep": list(plan.keep),
    "drop": list(plan.drop),
    "merges": [],
    "criterion": {"name": plan.criterion, "definition": plan.definition},
    "data": dict(plan.data) if plan.data is not None else None,
    "words": plan.words,
  }


def read_plan(path: Path) -> Plan:
  """Returns the plan in a file; raises JaxchopError, naming file and key, when it is none."""
  content = read_json(path)
  try:
    plan = Plan(
      source=content["source"],
      layers=int(content["layers"]),
      keep=tuple(int(layer) for layer in content["keep"]),
      criterion=str(content["criterion"]["name"]),
      definition=str(content["criterion"]["definition"]),
      data=content.get("data"),
    )
  except KeyError as error:
    raise JaxchopError(f"{path}: key {error} is missing; write a plan with `jaxchop prune --plan-only`") from error
  except (TypeError, ValueError) as error:
    raise JaxchopError(f"{path}: {error}") from error
  except JaxchopError as error:
    raise JaxchopError(f"{path}: {error}") from error
  if list(plan.drop) != list(content.get("drop", plan.drop)):
    raise JaxchopError(f"{path}: keep and drop contradict each other; correct one of them or leave drop out")
  if content.get("merges"):
    raise JaxchopError(f"{path}: merges {content['merges']}: this version of jaxchop applies no merges")
  return plan
