"""Scores of all layers by any criteria over the same calibration windows.

One forward pass serves every activation criterion and the baseline, one more with gradients every Taylor form.
Shapes: N calibration windows, B windows at once, T tokens, L layers, R resamplings.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxchop.compiler import Program
from jaxchop.config import ScoreConfig
from jaxchop.errors import JaxchopError
from jaxchop.model.llama import Block, Llama
from jaxchop.progress import stage
from jaxchop.prune import activations, gradients, weights
from jaxchop.prune.criteria import DEFINITIONS, Definition
from jaxchop.prune.journal import Journal
from jaxchop.prune.removal import Batch, Removals, contiguous, greedy, nothing, singles
from jaxchop.prune.resample import draws, intervals
from jaxchop.prune.subset import stacked


@dataclasses.dataclass(frozen=True, kw_only=True)
class Score:
  """One criterion's verdict on each layer."""

  name: str
  # What was computed, in words, with its source.
  definition: str
  # One number a layer; higher is more important.
  per_layer: tuple[float, ...]
  # The 95 % bootstrap interval of each, over calibration windows; None where no text was used, or only an order found.
  interval: tuple[tuple[float, float], ...] | None = None
  # The scores of each resampling of the calibration windows [R][L], see resample.py.
  bootstrap: tuple[tuple[float, ...], ...] | None = None
  # runs[n - 1][s] is the score of the n layers from s on, for a criterion that drops a run.
  runs: tuple[tuple[float, ...], ...] | None = None
  # Share of the resamplings that drop the same run, by its size n - 1.
  run_share: tuple[float, ...] | None = None
  # A value for each pair of states, L + 1 of them: state l enters layer l.
  pairs: tuple[tuple[float, ...], ...] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scores:
  """All that was computed of one model on one calibration text."""

  criteria: dict[str, Score]
  # Mean nats per token of the whole model, and its interval; None where no criterion ran it.
  baseline: tuple[float, tuple[float, float]] | None = None

  def __getitem__(self, name: str) -> Score:
    return self.criteria[name]


def score(
  model: Llama,
  ids_NT: np.ndarray,
  criteria: Sequence[str],
  settings: ScoreConfig = ScoreConfig(),  # noqa: B008 - frozen
  *,
  real_NT: np.ndarray | None = None,
  journal: Journal | None = None,
  done: Callable[[Scores], None] | None = None,
) -> Scores:
  """Returns every layer's score by each criterion; the model's arrays are used where they lie.

  `real_NT` is false at padding, which must stand on the right. With several devices the windows of a batch are spread
  over them. `journal` keeps losses that were measured, and `done` is given what was found so far after each criterion.
  Raises JaxchopError when a score is not finite: the model or the calibration text is broken.
  """
  real_NT = np.ones(ids_NT.shape, bool) if real_NT is None else real_NT
  raw = _Statistics(model, ids_NT, real_NT, settings, journal)
  forward = any(DEFINITIONS[name].family == "activations" for name in criteria)
  scores = Scores(criteria={})
  with _on_devices():
    for name in criteria:
      found = scores.criteria | {name: _scored(name, DEFINITIONS[name], raw)}
      scores = Scores(criteria=found, baseline=scores.baseline)
      if scores.baseline is None and DEFINITIONS[name].family in ("activations", "loss"):
        nll_N = raw.passed["nll"] if forward else raw.whole
        interval = intervals((draws(len(nll_N)) @ nll_N)[:, None])[0]
        scores = Scores(criteria=found, baseline=(float(nll_N.mean()), interval))
      if done is not None:
        done(scores)
  return scores


def _scored(name: str, definition: Definition, raw: "_Statistics") -> Score:
  if definition.chooses == "order":
    return Score(name=name, definition=definition.text, per_layer=raw.order)
  if definition.statistic == "taylor":
    return _score(name, definition, *raw.taylor)
  values = raw.of(definition)
  if definition.family == "weights":
    return _score(name, definition, definition.per_layer(values), None)
  mean, means = values.mean(axis=0), np.tensordot(draws(len(values)), values, axes=1)
  found = _score(name, definition, definition.per_layer(mean), definition.per_layer(means))
  if definition.runs:
    runs, resampled = definition.runs(mean), definition.runs(means)
    rows = tuple(tuple(row[np.isfinite(row)].tolist()) for row in runs)
    found = dataclasses.replace(found, runs=rows, run_share=_run_share(runs, resampled))
  if definition.pairs:
    statistic, finish = definition.pairs
    found = dataclasses.replace(found, pairs=_nested(finish(raw.passed[statistic].mean(axis=0))))
  return found


def _score(name: str, definition: Definition, per_layer: np.ndarray, replicates_RL: np.ndarray | None) -> Score:
  if not np.isfinite(per_layer).all():
    layer = int(np.argwhere(~np.isfinite(per_layer))[0][0])
    raise JaxchopError(
      f"{name} of layer {layer} is not a finite number: the weights or the calibration text are broken"
    )
  return Score(
    name=name,
    definition=definition.text,
    per_layer=tuple(per_layer.tolist()),
    interval=None if replicates_RL is None else intervals(replicates_RL),
    bootstrap=None if replicates_RL is None else _nested(replicates_RL),
  )


def _run_share(runs: np.ndarray, replicates: np.ndarray) -> tuple[float, ...]:
  """Returns, for each size of a run, the share of resamplings whose lowest run is the lowest of `runs`."""
  chosen = np.nanargmin(runs, axis=-1)
  return tuple(np.mean(np.nanargmin(replicates, axis=-1) == chosen, axis=0).tolist())


def _nested(values: np.ndarray) -> tuple[tuple[float, ...], ...]:
  return tuple(tuple(row) for row in values.tolist())


class _Statistics:
  """What criteria are made of, each computed when first asked for and then kept."""

  def __init__(
    self, model: Llama, ids_NT: np.ndarray, real_NT: np.ndarray, settings: ScoreConfig, journal: Journal | None
  ):
    self._model, self._settings, self._journal = _everywhere(model), settings, journal
    self._ids_NT, self._real_NT = ids_NT, real_NT

  def of(self, definition: Definition) -> np.ndarray:
    """Returns a statistic in float64, with a leading axis N where it was measured on windows."""
    match definition.family:
      case "weights":
        return self._magnitudes[definition.statistic]
      case "gradients":
        return self._products[definition.statistic]
      case "activations":
        return self.passed[definition.statistic]
      case "loss":
        return getattr(self, definition.statistic)

  @functools.cached_property
  def passed(self) -> dict[str, np.ndarray]:
    """What one forward pass tells, see activations.py."""
    program, parts = Program(activations.statistics), []
    skip = int(self._settings.skip_first)
    with stage("Scoring layers: forward pass", len(self._ids_NT), "windows") as bar:
      for ids_BT, real_BT, count in self._batches(len(self._ids_NT)):
        seen_BT = real_BT.at[:, :skip].set(False)
        parts.append(
          {name: np.asarray(a)[:count] for name, a in program(self._model, ids_BT, real_BT, seen_BT).items()}
        )
        bar.advance(count)
    return {name: np.concatenate([part[name] for part in parts]).astype(np.float64) for name in parts[0]}

  @functools.cached_property
  def _magnitudes(self) -> dict[str, np.ndarray]:
    found = {name: np.asarray(a, np.float64) for name, a in weights.magnitudes(self._model).items()}
    return found | {f"{name}_mean": found[name] / found["count"] for name in ("l1", "l2")}

  @functools.cached_property
  def _products(self) -> dict[str, np.ndarray]:
    """The products of weights and gradients, window after window; `total` is the sum of |their mean| by layer."""
    program = jax.jit(gradients.taylor_products, donate_argnums=4)
    rest, stack = self._parts
    total, rows = jax.jit(gradients.no_products)(stack), []
    with stage("Scoring layers: gradients", len(self._ids_NT), "windows") as bar:
      for ids_T, real_T in zip(self._ids_NT, self._real_NT, strict=True):
        total, sums = program(rest, stack, ids_T, real_T, total)
        rows.append(jax.tree.map(np.asarray, sums))
        bar.advance()
    whole_L = np.asarray(jax.jit(gradients.absolute_sums)(total), np.float64)
    stacked = {name: np.stack([getattr(row, name) for row in rows]).astype(np.float64) for name in rows[0]._fields}
    return stacked | {"total": whole_L / len(rows)}

  @property
  def taylor(self) -> tuple[np.ndarray, np.ndarray]:
    """The Taylor criterion per layer, exactly, and per resampling, by the change of the sampled weights.

    A resampling adds noise, which the absolute value cannot take back: all its scores are too large, those of noisy
    layers most. So each layer's are brought back to the exact score in the mean.
    """
    sample_NLC, whole_L = self._products["sample"], self._products["total"]
    drawn_RL = np.stack(
      [np.abs(np.tensordot(share_N, sample_NLC, axes=1)).sum(-1) for share_N in draws(len(sample_NLC))]
    )
    return whole_L, whole_L * drawn_RL / drawn_RL.mean(axis=0)

  @functools.cached_property
  def _removals(self) -> Removals:
    count = min(self._settings.removal_windows or len(self._ids_NT), len(self._ids_NT))
    return Removals(*self._parts, self._batches(count), journal=self._journal)

  @functools.cached_property
  def _parts(self) -> tuple[Llama, Block]:
    """The model without its layers, and the layers as one stack: programs over any subset read them from there."""
    rest = jax.tree.map(lambda leaf: leaf, self._model)
    rest.layers = nnx.List([])
    return rest, Program(stacked)(self._model)

  @property
  def whole(self) -> np.ndarray:
    """Mean nats per token of the whole model [N], on the windows of the removals."""
    return self._removals.nll(nothing(self._layers), title="Scoring layers: whole model")[0]

  @functools.cached_property
  def without_each(self) -> np.ndarray:
    """Mean nats per token without each layer [N, L]."""
    ranges = singles(range(self._layers)) + nothing(self._layers)
    return self._removals.nll(ranges, title="Scoring layers: without each")[:-1].T

  @functools.cached_property
  def without_runs(self) -> np.ndarray:
    """Mean nats per token without each run of layers [N, size - 1, start], NaN where there is none."""
    ranges = contiguous(self._layers, self._settings.longest_run or self._layers)
    nll_CN = self._removals.nll(ranges, title="Scoring layers: without each run")
    found = np.full((nll_CN.shape[1], ranges[-1][1] - ranges[-1][0], self._layers), np.nan)
    for (start, end), nll_N in zip(ranges, nll_CN, strict=True):
      found[:, end - start - 1, start] = nll_N
    return found

  @functools.cached_property
  def order(self) -> tuple[float, ...]:
    """The round in which each layer goes by greedy removal; one more than the rounds for those that stay."""
    rounds = min(self._settings.greedy_rounds or max(1, self._layers // 3), self._layers - 1)
    first, last = self._settings.greedy_first, self._settings.greedy_last
    candidates = range(first, self._layers - last)
    gone, _ = greedy(self._removals, candidates, min(rounds, len(candidates)), title="Scoring layers: greedy")
    return tuple(float(gone.index(layer) + 1 if layer in gone else len(gone) + 1) for layer in range(self._layers))

  @property
  def _layers(self) -> int:
    return len(self._model.layers)

  def _batches(self, windows: int) -> list[Batch]:
    """Returns the first windows in batches; the last one is filled up with its own first window."""
    size = min(self._settings.batch_size, windows)
    batches = []
    for start in range(0, windows, size):
      stop = min(start + size, windows)
      rows = [*range(start, stop), *[start] * (size - (stop - start))]
      batches.append((_spread(self._ids_NT[rows]), _spread(self._real_NT[rows]), stop - start))
    return batches


def _on_devices() -> contextlib.AbstractContextManager[Any]:
  """Sets the mesh of this process's devices, by which programs know that they are spread over several."""
  mesh = _mesh()
  return contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh)


def _mesh() -> Mesh | None:
  devices = jax.local_devices()
  return Mesh(np.array(devices), ("data",)) if len(devices) > 1 else None


def _everywhere(model: Llama) -> Llama:
  """Returns the model on every device of this process."""
  mesh = _mesh()
  return model if mesh is None else jax.device_put(model, NamedSharding(mesh, PartitionSpec()))


def _spread(rows_BT: np.ndarray) -> jax.Array:
  """Returns the rows on the devices of this process, a share on each where they divide evenly."""
  mesh = _mesh()
  if mesh is None or len(rows_BT) % mesh.size:
    return jnp.asarray(rows_BT)
  return jax.device_put(rows_BT, NamedSharding(mesh, PartitionSpec("data")))
