"""What scores.json says: every criterion's score of the layers, of runs of them and of pairs of states."""

import dataclasses
from dataclasses import dataclass

from jaxchop.errors import JaxchopError
from jaxchop.report.fields import Fields


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
  """One criterion's value of every layer; higher means more important."""

  name: str
  definition: str
  # None where the file has no number.
  per_layer: tuple[float | None, ...]
  # Low and high of each layer, where the file has them.
  interval: tuple[tuple[float, float], ...] = ()
  # runs[n - 1][s]: the score of the n layers from s on, of a criterion that drops a run.
  runs: tuple[tuple[float, ...], ...] = ()
  # Share of the resamplings that drop the same run, by its size n - 1.
  run_share: tuple[float, ...] = ()
  # A value of each pair of states, one more than there are layers.
  pairs: tuple[tuple[float, ...], ...] = ()
  # The score of each layer in each resampling of the calibration text.
  bootstrap: tuple[tuple[float, ...], ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Occasion:
  """Which model was scored, on which text."""

  model: str = ""
  text: str = ""
  # So many windows of so many tokens.
  windows: int | None = None
  window: int | None = None
  # Mean nats per token of the whole model on that text.
  nll: float | None = None
  interval: tuple[float | None, ...] = ()


def read_occasion(file: Fields) -> Occasion:
  """What a scores.json is about."""
  data, baseline = file.child("data"), file.child("baseline")
  return Occasion(
    model=file.child("model").text("name"),
    text=data.text("name"),
    windows=data.integer("windows"),
    window=data.integer("window"),
    nll=baseline.number("nll"),
    interval=baseline.numbers("interval"),
  )


def read_scores(file: Fields) -> tuple[Score, ...]:
  """The criteria of a scores.json, in the file's order; raises JaxchopError where lengths contradict each other."""
  scores = tuple(_read_score(name, one, file) for name, one in file.children("criteria"))
  for score in scores:
    _check_lengths(score)
    found, first = len(score.per_layer), len(scores[0].per_layer)
    if found != first:
      raise JaxchopError(
        f"scores.json: {score.name} has {found} layers, {scores[0].name} has {first}; score one model again"
      )
  return scores


def _read_score(name: str, one: Fields, file: Fields) -> Score:
  score = Score(
    name=name,
    definition=one.text("definition"),
    per_layer=one.numbers("per_layer"),
    interval=one.number_pairs("interval"),
    pairs=file.child("pairs").rows(name),
    bootstrap=file.child("bootstrap").rows(name),
  )
  if one.text("chooses") != "run":
    # A file of an earlier version keeps something else under "windows".
    return score
  share = tuple(value for value in one.numbers("run_share") if value is not None)
  return dataclasses.replace(score, runs=file.child("windows").rows(name), run_share=share)


def _check_lengths(score: Score) -> None:
  layers = len(score.per_layer)
  found = {
    "intervals": ([len(score.interval)], [layers] if score.interval else [0]),
    "runs": ([len(row) for row in score.runs], [layers - n for n in range(len(score.runs))]),
    "shares of runs": ([len(score.run_share)], [len(score.runs)] if score.run_share else [0]),
    "pairs": ([len(row) for row in score.pairs], [layers + 1] * (layers + 1 if score.pairs else 0)),
    "resampled scores": ([len(row) for row in score.bootstrap], [layers] * len(score.bootstrap)),
  }
  for what, (lengths, expected) in found.items():
    if lengths != expected:
      at = next((n for n, (a, b) in enumerate(zip(lengths, expected, strict=False)) if a != b), 0)
      raise JaxchopError(
        f"scores.json: {score.name} has {layers} layers, row {at} of its {what} does not fit; score again"
      )
