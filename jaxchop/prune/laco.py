"""LaCo: groups of layers collapse into one, from the top down, while the model's last hidden states stay the same.

Source: arXiv 2402.11187 and its released notebooks. Indices run over the current, ever shorter list of layers.
Shapes: N calibration sentences, B sentences at once, T tokens, D width, L layers.
"""

import dataclasses
import functools
import logging
import math
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxchop.compiler import Program
from jaxchop.errors import JaxchopError, UsageError
from jaxchop.model.llama import Block, Llama, positions
from jaxchop.model.rope import rotation
from jaxchop.progress import Bar, stage
from jaxchop.prune.merge import Merge, Merged, MergeMode, Trial, finish, merged_block, sentence_batches
from jaxchop.prune.subset import layer_at, run_alive, stacked
from jaxchop.prune.surgery import keep_layers

LacoMode = Literal["telescope", "rdsc"]
log = logging.getLogger("jaxchop")
_HOW = "raise merging.layers_per_merge or merging.highest, or lower merging.interval or merging.lowest"


@dataclass(frozen=True, kw_only=True, slots=True)
class LacoConfig:
  """LaCo's settings; the defaults are those reported for Llama-2-7B."""

  # Layers that become one, C.
  layers_per_merge: int = 4
  # Layers that the search goes down after a merge, I; without one it goes down by one.
  interval: int = 2
  # Lowest layer that may absorb others, Lo.
  lowest: int = 0
  # The search starts layers_per_merge below this layer, H; None is the last layer.
  highest: int | None = None
  # A merge stays when the similarity to the whole model is above this, T.
  threshold: float = 0.65
  # The merge of the released code, behind the published numbers, or that of the paper; see `merged_block`.
  mode: LacoMode = "telescope"


class Candidates:
  """How like the whole model are models with merges: one compiled program for all, each measured once.

  The similarity is the mean over sentences of the cosine of the flattened last hidden states, in float32, padding
  excluded. Those states are taken after the final norm, as transformers' `hidden_states[-1]`, which LaCo and SLM read.
  """

  def __init__(self, model: Llama, ids_NT: np.ndarray, mask_NT: np.ndarray, batch_size: int):
    """Runs the whole model once. Raises JaxchopError when its states are not finite."""
    self._model, self._ends = model, keep_layers(model, ())
    self._stack = stacked(model)
    self._applied: tuple[Merge, ...] = ()
    self._known: dict[tuple[Merge, ...], float] = {}
    self._batches = sentence_batches(ids_NT, mask_NT, batch_size)
    whole = layer_at(self._stack, 0), 0, np.ones(len(model.layers), bool)
    self._wanted = [_last_hidden(self._ends, self._stack, *whole, ids_BT) for ids_BT, _ in self._batches]
    if not all(bool(jnp.isfinite(h_BTD).all()) for h_BTD in self._wanted):
      raise JaxchopError("the last hidden states of the whole model are not finite: its weights are broken")

  def similarity(self, merges: tuple[Merge, ...]) -> float:
    """Returns the similarity after `merges`, of which the last is the candidate; a state that overflows counts -1."""
    if merges not in self._known:
      candidate = merges[-1]
      self._bring(merges[:-1])
      alive_L = np.ones(len(self._model.layers), bool)
      alive_L[[layer for merge in merges for layer in merge.layers]] = False
      block = _block(self._stack, candidate.into, candidate.layers, candidate.mode)
      cosines = []
      for (ids_BT, mask_BT), wanted_BTD in zip(self._batches, self._wanted, strict=True):
        h_BTD = _last_hidden(self._ends, self._stack, block, candidate.into, alive_L, ids_BT)
        cosines.append(np.asarray(_cosine(h_BTD, wanted_BTD, mask_BT))[mask_BT[:, 0]])
      mean = float(np.concatenate(cosines).astype(np.float64).mean())
      self._known[merges] = max(-1.0, min(mean, 1.0)) if math.isfinite(mean) else -1.0
    return self._known[merges]

  def _bring(self, merges: tuple[Merge, ...]) -> None:
    """Brings the stack to the state after `merges`, from the start only where the present state is no part of it."""
    if merges[: len(self._applied)] != self._applied:
      self._stack, self._applied = stacked(self._model), ()
    for merge in merges[len(self._applied) :]:
      block = _block(self._stack, merge.into, merge.layers, merge.mode)
      self._stack = _put(self._stack, block, merge.into)
    self._applied = merges


def laco(model: Llama, ids_NT: np.ndarray, mask_NT: np.ndarray, config: LacoConfig, *, batch_size: int = 8) -> Merged:
  """Returns `model` after LaCo's search with `config.threshold`.

  `ids_NT` are sentences as int32, `mask_NT` is true where they are no padding, which is on the right; `batch_size` of
  them run at once. Raises UsageError on settings that do not fit the model, JaxchopError on broken sentences.
  """
  start = _start(config, len(model.layers))
  candidates = Candidates(model, ids_NT, mask_NT, batch_size)
  with stage("Merging layers by LaCo", start - config.lowest + 1, "layers tried") as bar:
    merges, trials = _search(candidates, config, config.threshold, len(model.layers), len(model.layers), bar)
  return finish(model, merges, trials)


def laco_to(
  model: Llama, ids_NT: np.ndarray, mask_NT: np.ndarray, config: LacoConfig, count: int, *, batch_size: int = 8
) -> Merged:
  """Returns `model` with exactly `count` layers fewer, by the highest threshold that removes at least as many.

  `config.threshold` is ignored. The search steps down through every threshold that changes the outcome, so none is
  missed, and measures no state twice. With the threshold found, merging stops as soon as `count` layers are gone; where
  the last merge would remove more, it absorbs only its first layers, and its trial holds the similarity of that smaller
  merge. Raises UsageError when no threshold reaches `count`, saying how many layers can go, and as `laco` does.
  """
  layers = len(model.layers)
  _start(config, layers)
  if not 0 <= count < layers:
    raise UsageError(f"laco: {count} of {layers} layers cannot go; at least one must stay, none may be added")
  candidates = Candidates(model, ids_NT, mask_NT, batch_size)
  threshold, most = 1.0, 0
  with stage("Merging layers by LaCo", None, "layers tried") as bar:
    while True:
      merges, trials = _search(candidates, config, threshold, layers, count, bar)
      removed = _removed(merges)
      if removed >= count:
        break
      most = max(most, removed)
      # Nothing changes until the threshold falls below the best merge that it refuses.
      best = max((trial.similarity for trial in trials if not trial.committed), default=-1.0)
      if best <= -1.0:
        raise UsageError(f"laco: {count} layers cannot go: at most {most} do, whatever the threshold; {_HOW}")
      threshold = math.nextafter(best, -math.inf)
  if removed > count:
    last = dataclasses.replace(merges[-1], layers=merges[-1].layers[: count - removed])
    merges = (*merges[:-1], last)
    trials[-1] = Trial(last.into, candidates.similarity(merges), True)
  log.info("LaCo: %d layers go at threshold %.6f", count, threshold)
  return finish(model, merges, trials)


def _search(
  candidates: Candidates, config: LacoConfig, threshold: float, layers: int, limit: int, bar: Bar
) -> tuple[tuple[Merge, ...], list[Trial]]:
  """Returns the merges that stay and all that were tried; ends early once `limit` layers are gone.

  The released loop's return to the top from beyond the end of the list cannot happen: each step goes down.
  """
  alive = list(range(layers))
  merges: tuple[Merge, ...] = ()
  trials: list[Trial] = []
  at = _start(config, layers)
  while at >= config.lowest and _removed(merges) < limit:
    absorbed = slice(at + 1, min(at + config.layers_per_merge, len(alive)))
    merge = Merge(into=alive[at], layers=tuple(alive[absorbed]), mode=config.mode)
    similarity = candidates.similarity((*merges, merge))
    trials.append(Trial(merge.into, similarity, similarity > threshold))
    step = 1
    if similarity > threshold:
      merges, step = (*merges, merge), config.interval
      del alive[absorbed]
    bar.advance(min(step, at - config.lowest + 1), f"layer {merge.into}: similarity {similarity:.3f}")
    at -= step
  return merges, trials


def _start(config: LacoConfig, layers: int) -> int:
  """Returns the first layer that the search merges others into; raises UsageError, naming the setting."""
  if config.layers_per_merge < 2:
    raise UsageError(f"merging.layers_per_merge is {config.layers_per_merge}; a merge takes at least 2 layers")
  if config.interval < 1:
    raise UsageError(f"merging.interval is {config.interval}; it must be at least 1, or the search would not end")
  if not -1.0 <= config.threshold <= 1.0:
    raise UsageError(f"merging.threshold is {config.threshold}; a cosine lies in -1..1")
  highest = layers - 1 if config.highest is None else config.highest
  if highest > layers:
    raise UsageError(f"merging.highest is {highest}; the model has {layers} layers")
  if not 0 <= config.lowest <= highest - config.layers_per_merge:
    raise UsageError(
      f"merging.lowest is {config.lowest}; with highest {highest} and layers_per_merge {config.layers_per_merge} it "
      f"must lie in 0..{highest - config.layers_per_merge}"
    )
  return highest - config.layers_per_merge


def _removed(merges: tuple[Merge, ...]) -> int:
  return sum(len(merge.layers) for merge in merges)


@Program
def _last_hidden(
  ends: Llama, stack: Any, block: Block, slot: jax.Array, alive_L: jax.Array, ids_BT: jax.Array
) -> jax.Array:
  """Returns the states after the final norm, with `block` in place of layer `slot` and the dead layers skipped.

  The block is an argument of its own, so that trying it copies none of the stack.
  """
  turn = rotation(ends.config, positions(ids_BT))
  below_L = alive_L & (jnp.arange(len(alive_L)) < slot)
  x_BTD = run_alive(stack, ends.embed(ids_BT), turn, below_L)
  return ends.norm(run_alive(stack, block(x_BTD, turn), turn, alive_L, start=slot + 1))


@functools.partial(Program, static_argnames="mode")
def _block(stack: Any, into: jax.Array, layers: tuple[jax.Array, ...], mode: MergeMode) -> Block:
  return merged_block(layer_at(stack, into), [layer_at(stack, layer) for layer in layers], mode)


@functools.partial(Program, donate_argnums=0)
def _put(stack: Any, block: Block, slot: jax.Array) -> Any:
  return jax.tree.map(lambda leaves, leaf: leaves.at[slot].set(leaf), stack, block)


@Program
def _cosine(x_BTD: jax.Array, y_BTD: jax.Array, mask_BT: jax.Array) -> jax.Array:
  """Returns cosine_B of whole sentences as one vector each."""
  x, y = (jnp.where(mask_BT[..., None], a.astype(jnp.float32), 0.0) for a in (x_BTD, y_BTD))
  product, *norms = (jnp.sum(a * b, axis=(1, 2)) for a, b in ((x, y), (x, x), (y, y)))
  return product / jnp.maximum(jnp.sqrt(norms[0]) * jnp.sqrt(norms[1]), jnp.finfo(jnp.float32).tiny)
