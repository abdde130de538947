"""scores.json: what was found, about what; one file serves every size and target."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxchop.config import ScoreConfig
from jaxchop.errors import JaxchopError
from jaxchop.files import read_json
from jaxchop.prune.criteria import DEFINITIONS
from jaxchop.prune.score import Score, Scores

# Digits of what was resampled: more would say nothing.
_DIGITS = 6
# Settings that only some criteria depend on, by the statistic they are made of.
_OWN = {
  "without_each": ("removal_windows",),
  "without_runs": ("removal_windows", "longest_run"),
  "order": ("removal_windows", "greedy_rounds", "greedy_first", "greedy_last"),
}


def key_of(name: str, settings: ScoreConfig, model: Mapping[str, Any], data: Mapping[str, Any]) -> str:
  """Returns the digest of everything that a criterion's scores depend on."""
  definition = DEFINITIONS[name]
  depends: list[Any] = [definition.text, model["digest"]]
  if definition.family != "weights":
    depends += [data["digest"], settings.windows, settings.window, settings.skip_first]
  depends += [getattr(settings, field) for field in _OWN.get(definition.statistic, ())]
  return hashlib.sha256(json.dumps(depends).encode()).hexdigest()


def to_json(
  scores: Scores, *, settings: ScoreConfig, model: Mapping[str, Any], data: Mapping[str, Any]
) -> dict[str, Any]:
  """Returns the content of scores.json; `model` and `data` say what was scored on what."""
  found = scores.criteria
  return {
    "criteria": {
      name: {
        "definition": s.definition,
        "family": DEFINITIONS[name].family,
        "chooses": DEFINITIONS[name].chooses,
        "per_layer": s.per_layer,
        "interval": s.interval,
        "run_share": s.run_share,
        "key": key_of(name, settings, model, data),
      }
      for name, s in found.items()
    },
    "windows": {name: s.runs for name, s in found.items() if s.runs is not None},
    "pairs": {name: s.pairs for name, s in found.items() if s.pairs is not None},
    "bootstrap": {name: _short(s.bootstrap) for name, s in found.items() if s.bootstrap is not None},
    "baseline": None if scores.baseline is None else {"nll": scores.baseline[0], "interval": scores.baseline[1]},
    "model": dict(model),
    "data": dict(data),
  }


def from_json(content: Mapping[str, Any]) -> Scores:
  """Returns the scores of a scores.json."""
  baseline = content.get("baseline")
  return Scores(
    criteria={name: _score(name, entry, content) for name, entry in content["criteria"].items()},
    baseline=None if baseline is None else (baseline["nll"], tuple(baseline["interval"])),
  )


def read_scores(path: Path) -> dict[str, Any]:
  """Returns the content of a scores.json; raises JaxchopError, naming the file, when it is none."""
  content = read_json(path)
  try:
    from_json(content)
    dict(content["data"])
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    raise JaxchopError(f"{path}: not a scores.json ({error!r}); write one with `jaxchop score`") from error
  return content


def standing_scores(path: Path, settings: ScoreConfig, model: Mapping[str, Any], data: Mapping[str, Any]) -> Scores:
  """Returns those scores of an earlier file that would come out the same; none where there is no such file."""
  try:
    content = read_scores(path) if path.exists() else {"criteria": {}}
  except JaxchopError:
    content = {"criteria": {}}
  scores = from_json(content)
  same = {
    name: score
    for name, score in scores.criteria.items()
    if name in DEFINITIONS and content["criteria"][name].get("key") == key_of(name, settings, model, data)
  }
  return dataclasses.replace(scores, criteria=same, baseline=scores.baseline if same else None)


def _score(name: str, entry: Mapping[str, Any], content: Mapping[str, Any]) -> Score:
  interval, share = entry["interval"], entry.get("run_share")
  return Score(
    name=name,
    definition=entry["definition"],
    per_layer=tuple(entry["per_layer"]),
    interval=None if interval is None else tuple((low, high) for low, high in interval),
    bootstrap=_rows(content.get("bootstrap", {}).get(name)),
    runs=_rows(content.get("windows", {}).get(name)),
    run_share=None if share is None else tuple(share),
    pairs=_rows(content.get("pairs", {}).get(name)),
  )


def _rows(rows: Sequence[Sequence[float]] | None) -> tuple[tuple[float, ...], ...] | None:
  return None if rows is None else tuple(map(tuple, rows))


def _short(rows: Sequence[Sequence[float]]) -> list[list[float]]:
  return [[float(f"{value:.{_DIGITS}g}") for value in row] for row in rows]
