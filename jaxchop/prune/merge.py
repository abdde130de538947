"""Layers merged into one: the arithmetic, the record of it, and the model that comes out.

A block is known by the index in the whole model of the layer whose place it has; absorbed blocks vanish.
Shapes: N calibration sentences, B sentences at once, T tokens. Sentences are padded on the right.
"""

import math
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxchop.errors import JaxchopError, UsageError
from jaxchop.layers import without
from jaxchop.model.llama import Block, Llama
from jaxchop.model.tree import dotted

MergeMode = Literal["telescope", "rdsc", "convex"]
_NORMS = ("attention_norm", "mlp_norm")


@dataclass(frozen=True, kw_only=True, slots=True)
class Merge:
  """One block and what it absorbs. Raises UsageError, naming the layer, on a merge that says nothing or too much."""

  # The block that stays.
  into: int
  # The blocks that it absorbs, in order.
  layers: tuple[int, ...]
  mode: MergeMode
  # Share of the block that stays, in `convex` only.
  weight: float | None = None

  def __post_init__(self) -> None:
    fault = _fault(len(self.layers), self.mode, self.weight)
    if self.into in self.layers:
      fault = "it cannot absorb itself; leave it out of layers"
    if fault:
      raise UsageError(f"merge into layer {self.into}: {fault}")


class Trial(NamedTuple):
  """A merge that was tried, or an unmerged pair that was measured."""

  # The block that would absorb.
  layer: int
  # How like the whole model the merged one is, or how like each other the pair is.
  similarity: float
  # Whether the merge is part of the result.
  committed: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Merged:
  """A model with fewer layers, and how it came about."""

  model: Llama
  # Blocks of the whole model that are still there, in order.
  keep: tuple[int, ...]
  # In the order in which they are applied: a block may be absorbed after it has absorbed others.
  merges: tuple[Merge, ...]
  trials: tuple[Trial, ...]


def merged_block(base: Block, absorbed: Sequence[Block], mode: MergeMode, weight: float | None = None) -> Block:
  """Returns `base` with its seven projections, and their biases, merged; its RMSNorm scales stay.

  - telescope: the last absorbed block's projections, unchanged. LaCo's released code adds the differences to the block
    that it takes them from, so its sum telescopes; SLM's does the same with its published weight factor of 1.
  - rdsc: base + sum over the absorbed of (absorbed - base). Source: LaCo, arXiv 2402.11187, eq. 1.
  - convex: weight * base + (1 - weight) * absorbed, of one absorbed block. Source: MKA, arXiv 2406.16330.

  Sums are float32 and the result has the dtype of `base`. Raises UsageError on a missing block or weight.
  """
  if fault := _fault(len(absorbed), mode, weight):
    raise UsageError(f"merge: {fault}")

  def merge(path: tuple[Any, ...], *leaves: jax.Array) -> jax.Array:
    return leaves[0] if dotted(path).split(".")[0] in _NORMS else _combined(leaves, mode, weight)

  return jax.tree_util.tree_map_with_path(merge, base, *absorbed)


def apply_merges(model: Llama, merges: Sequence[Merge]) -> Llama:
  """Returns a new model after `merges`, one after the other; arrays that no merge changes are shared with `model`.

  Raises UsageError, naming the layer, on one that the model has not, or has no more after the merges before.
  """
  small = jax.tree.map(lambda leaf: leaf, model)
  blocks = dict(enumerate(small.layers))
  for merge in merges:
    absorbed = [_take(blocks, layer, merge, len(model.layers)) for layer in merge.layers]
    base = _take(blocks, merge.into, merge, len(model.layers))
    blocks[merge.into] = merged_block(base, absorbed, merge.mode, merge.weight)
  small.layers = nnx.List(blocks[layer] for layer in sorted(blocks))
  return small


def finish(model: Llama, merges: Sequence[Merge], trials: Sequence[Trial]) -> Merged:
  """Returns the merged model with its record."""
  keep = without([layer for merge in merges for layer in merge.layers], len(model.layers))
  return Merged(model=apply_merges(model, merges), keep=keep, merges=tuple(merges), trials=tuple(trials))


def merge_to_json(merge: Merge) -> dict[str, Any]:
  """Returns a merge as plain JSON."""
  return {"into": merge.into, "layers": list(merge.layers), "mode": merge.mode, "weight": merge.weight}


def merge_from_json(content: Any) -> Merge:
  """Returns the merge in plain JSON; raises JaxchopError, naming the key, when it is none."""
  if not isinstance(content, Mapping):
    raise JaxchopError(f"merge {content!r}: it must be an object with into, layers, mode and weight")
  for key in content:
    if key not in ("into", "layers", "mode", "weight"):
      raise JaxchopError(f"merge: key {key!r} is unknown; it has into, layers, mode and weight")
  values: tuple[Any, ...] = tuple(content.get(key) for key in ("into", "layers", "mode", "weight"))
  into, layers, mode, weight = values
  modes = typing.get_args(MergeMode)
  _expect(_is_layer(into), "into", into, "a layer")
  _expect(isinstance(layers, Sequence) and all(map(_is_layer, layers)), "layers", layers, "a list of layers")
  _expect(mode in modes, "mode", mode, f"one of {', '.join(modes)}")
  number = isinstance(weight, int | float) and not isinstance(weight, bool)
  _expect(weight is None or number, "weight", weight, "a number or null")
  return Merge(into=into, layers=tuple(layers), mode=mode, weight=None if weight is None else float(weight))


def sentence_batches(ids_NT: np.ndarray, mask_NT: np.ndarray, batch_size: int) -> list[tuple[np.ndarray, np.ndarray]]:
  """Returns (ids_BT, mask_BT) of all sentences in order; the last batch is filled up with rows that are all padding.

  So one program serves all batches. Raises JaxchopError, naming the sentence, where one is empty or not padded on the
  right, and UsageError on a batch size below 1.
  """
  if batch_size < 1:
    raise UsageError(f"batch_size is {batch_size}; it must be at least 1")
  if ids_NT.ndim != 2 or not len(ids_NT) or ids_NT.shape != mask_NT.shape:
    raise JaxchopError(f"calibration: ids {ids_NT.shape} and mask {mask_NT.shape}; both must be [sentences, tokens]")
  broken_N = ~mask_NT[:, 0] | (mask_NT[:, 1:] & ~mask_NT[:, :-1]).any(axis=1)
  if broken_N.any():
    raise JaxchopError(f"calibration: sentence {int(np.argmax(broken_N))} is empty or not padded on the right")
  batches = []
  for start in range(0, len(ids_NT), batch_size):
    ids_BT, mask_BT = ids_NT[start : start + batch_size], mask_NT[start : start + batch_size]
    fill = ((0, batch_size - len(ids_BT)), (0, 0))
    batches.append((np.pad(ids_BT, fill), np.pad(mask_BT, fill)))
  return batches


def _fault(absorbed: int, mode: MergeMode, weight: float | None) -> str | None:
  """Returns what is wrong with a merge, or None."""
  if not absorbed:
    return "layers is empty; name at least one layer to absorb"
  if mode != "convex":
    return None if weight is None else f"weight is {weight}; {mode} takes none, only convex does"
  if absorbed != 1:
    return f"convex absorbs one layer, not {absorbed}; write one merge for each"
  if weight is None or not math.isfinite(weight):
    return f"weight is {weight}; convex needs the share of the layer that stays"
  return None


def _combined(leaves: Sequence[jax.Array], mode: MergeMode, weight: float | None) -> jax.Array:
  base, *absorbed = leaves
  if mode == "telescope":
    return absorbed[-1]
  wide = jnp.promote_types(base.dtype, jnp.float32)
  start, others = base.astype(wide), [leaf.astype(wide) for leaf in absorbed]
  if mode == "rdsc":
    return (start + sum(leaf - start for leaf in others)).astype(base.dtype)
  assert weight is not None
  return (weight * start + (1 - weight) * others[0]).astype(base.dtype)


def _take(blocks: dict[int, Block], layer: int, merge: Merge, count: int) -> Block:
  if layer in blocks:
    return blocks.pop(layer)
  if 0 <= layer < count:
    raise UsageError(f"merge into layer {merge.into}: layer {layer} was absorbed before; name it once")
  raise UsageError(f"merge into layer {merge.into}: layer {layer} is unknown; the model has layers 0..{count - 1}")


def _is_layer(value: Any) -> bool:
  return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _expect(right: bool, key: str, value: Any, wanted: str) -> None:
  if not right:
    raise JaxchopError(f"merge: key {key!r} is {value!r}; it must be {wanted}")
