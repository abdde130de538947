"""Scores of all layers by several criteria over the same calibration windows, and the file that keeps them.

Higher means more important. Shapes: N calibration windows, B windows at once, T tokens, L layers.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxchop.config import Criterion
from jaxchop.errors import JaxchopError
from jaxchop.files import read_json
from jaxchop.model.llama import Llama
from jaxchop.progress import stage
from jaxchop.prune import activations, removal

# Resamplings of the calibration windows behind an interval, and the share of them inside it.
_RESAMPLES, _CONFIDENCE = 1000, 0.95


@dataclasses.dataclass(frozen=True, slots=True)
class Score:
  """One criterion's verdict on each layer."""

  name: str
  # What was computed, in words, with its source.
  definition: str
  # One number a layer; higher is more important.
  per_layer: tuple[float, ...]
  # The 95 % bootstrap interval of each, over calibration windows.
  interval: tuple[tuple[float, float], ...]
  # The same per window: windows[n][l].
  windows: tuple[tuple[float, ...], ...]


@dataclasses.dataclass(frozen=True, slots=True)
class _Definition:
  text: str
  # (model, ids_BT) -> values_BL.
  measure: Callable[[Llama, jax.Array], jax.Array]
  # From the mean over windows to the score.
  finish: Callable[[np.ndarray], np.ndarray]


_DEFINITIONS: dict[str, _Definition] = {
  "block_influence": _Definition(activations.BLOCK_INFLUENCE, activations.block_influence, lambda mean: mean),
  "perplexity": _Definition(removal.PERPLEXITY, removal.nll_without_each, np.exp),
}


def score(model: Llama, ids_NT: np.ndarray, criteria: Sequence[Criterion], *, batch_size: int = 8) -> dict[str, Score]:
  """Returns {criterion: Score} of every layer; `batch_size` windows run at once.

  Raises JaxchopError when a score is not finite: the model or the calibration text is broken.
  """
  scores: dict[str, Score] = {}
  for name in criteria:
    definition = _DEFINITIONS[name]
    values_NL = _over_batches(definition.measure, model, ids_NT, batch_size, f"Scoring layers by {name}")
    if not np.isfinite(values_NL).all():
      layer = int(np.argwhere(~np.isfinite(values_NL))[0][1])
      raise JaxchopError(
        f"{name} of layer {layer} is not a finite number: the weights or the calibration text are broken"
      )
    per_layer = definition.finish(values_NL.mean(axis=0))
    scores[name] = Score(
      name=name,
      definition=definition.text,
      per_layer=tuple(per_layer.tolist()),
      interval=_intervals(values_NL, definition.finish),
      windows=tuple(map(tuple, values_NL.tolist())),
    )
  return scores


def to_json(scores: Mapping[str, Score], *, model: Mapping[str, Any], data: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the content of scores.json; `model` and `data` say what was scored on what."""
  criteria = {
    s.name: {"definition": s.definition, "per_layer": s.per_layer, "interval": s.interval} for s in scores.values()
  }
  return {
    "criteria": criteria,
    "windows": {s.name: s.windows for s in scores.values()},
    "model": dict(model),
    "data": dict(data),
  }


def from_json(content: Mapping[str, Any]) -> dict[str, Score]:
  """Returns the scores of a scores.json."""
  return {
    name: Score(
      name,
      entry["definition"],
      tuple(entry["per_layer"]),
      tuple((low, high) for low, high in entry["interval"]),
      tuple(map(tuple, content["windows"][name])),
    )
    for name, entry in content["criteria"].items()
  }


def read_scores(path: Path) -> dict[str, Any]:
  """Returns the content of a scores.json; raises JaxchopError, naming the file, when it is none."""
  content = read_json(path)
  try:
    from_json(content)
    dict(content["data"])
  except (KeyError, TypeError, ValueError) as error:
    raise JaxchopError(f"{path}: not a scores.json ({error!r}); write one with `jaxchop score`") from error
  return content


def _over_batches(
  measure: Callable[[Llama, jax.Array], jax.Array],
  model: Llama,
  ids_NT: np.ndarray,
  batch_size: int,
  title: str,
) -> np.ndarray:
  """Returns values_NL; the last batch is filled up with its own first window, so that one program serves all."""
  program, rows = jax.jit(measure), []
  with stage(title, len(ids_NT), "windows") as bar:
    for start in range(0, len(ids_NT), batch_size):
      ids_BT = ids_NT[start : start + batch_size]
      filled = np.concatenate([ids_BT, np.repeat(ids_BT[:1], batch_size - len(ids_BT), axis=0)])
      rows.append(np.asarray(program(model, jnp.asarray(filled)))[: len(ids_BT)])
      bar.advance(len(ids_BT))
  return np.concatenate(rows).astype(np.float64)


def _intervals(values_NL: np.ndarray, finish: Callable[[np.ndarray], np.ndarray]) -> tuple[tuple[float, float], ...]:
  """Percentile bootstrap over windows: what another draw of calibration text might have said."""
  picks_RN = np.random.default_rng(0).integers(len(values_NL), size=(_RESAMPLES, len(values_NL)))
  means_RL = finish(values_NL[picks_RN].mean(axis=1))
  tail = 100 * (1 - _CONFIDENCE) / 2
  low_L, high_L = np.percentile(means_RL, [tail, 100 - tail], axis=0)
  return tuple(zip(low_L.tolist(), high_L.tolist(), strict=True))
