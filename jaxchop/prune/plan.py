"""A prune plan is a file: any stage can start from it, and it travels inside the export."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from jaxchop.errors import JaxchopError
from jaxchop.files import read_json
from jaxchop.layers import in_words, spans, without
from jaxchop.prune.merge import Merge, merge_from_json, merge_to_json

RepairMethod = Literal["streamline", "linear_map"]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Repair:
  """What stands in for a run of layers; its weights are fitted on text, so a plan alone does not make them again."""

  method: RepairMethod
  # The run, half-open: of streamline with the layer that is trained in its place, of linear_map without.
  start: int
  end: int

  @property
  def words(self) -> str:
    if self.method == "streamline":
      return f"one trained layer stands for {self.start}..{self.end - 1}"
    return f"a linear map folded into layer {self.start - 1} stands for {self.start}..{self.end - 1}"


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
  # What kept layers absorb of the others, in the order of merging.
  merges: tuple[Merge, ...] = ()
  repair: Repair | None = None

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
    """What the plan does, in a sentence."""
    merges = [f"{merge.into} absorbs {spans(merge.layers)} ({merge.mode})" for merge in self.merges]
    return "; ".join([in_words(self.keep, self.layers), *merges, *([self.repair.words] if self.repair else [])])


def to_json(plan: Plan) -> dict[str, Any]:
  """Returns the content of plan.json."""
  return {
    "source": dict(plan.source),
    "layers": plan.layers,
    "keep": list(plan.keep),
    "drop": list(plan.drop),
    "merges": [merge_to_json(merge) for merge in plan.merges],
    "repair": dataclasses.asdict(plan.repair) if plan.repair else None,
    "criterion": {"name": plan.criterion, "definition": plan.definition},
    "data": dict(plan.data) if plan.data is not None else None,
    "words": plan.words,
  }


def read_plan(path: Path) -> Plan:
  """Returns the plan in a file; raises JaxchopError, naming file and key, when it is none."""
  return from_json(read_json(path), str(path))


def from_json(content: Any, path: str) -> Plan:
  """Returns the plan in plain JSON; `path` says in an error where it stood."""
  try:
    plan = Plan(
      source=content["source"],
      layers=int(content["layers"]),
      keep=tuple(int(layer) for layer in content["keep"]),
      criterion=str(content["criterion"]["name"]),
      definition=str(content["criterion"]["definition"]),
      data=content.get("data"),
      merges=tuple(map(merge_from_json, content.get("merges") or ())),
      repair=Repair(**content["repair"]) if content.get("repair") else None,
    )
  except KeyError as error:
    raise JaxchopError(f"{path}: key {error} is missing; write a plan with `jaxchop prune --plan-only`") from error
  except (TypeError, ValueError) as error:
    raise JaxchopError(f"{path}: {error}") from error
  except JaxchopError as error:
    raise JaxchopError(f"{path}: {error}") from error
  if list(plan.drop) != list(content.get("drop", plan.drop)):
    raise JaxchopError(f"{path}: keep and drop contradict each other; correct one of them or leave drop out")
  if absorbed := sorted({layer for merge in plan.merges for layer in merge.layers} & set(plan.keep)):
    raise JaxchopError(f"{path}: layer {absorbed[0]} is kept, but a merge absorbs it; correct keep or merges")
  return plan
