"""How much faster a token is decoded for every layer that was removed, beside the most that it could be."""

import dataclasses

import jax

from jaxchop.evaluate.speed import Speed
from jaxchop.model.llama import Llama


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Gain:
  """Decoding of a model with fewer layers, beside the whole one's; shares are of the time of a token of the whole."""

  removed: int
  # How many times as many tokens a second.
  decode: float
  # The same, were a token's time that of the layers alone, each as long as another: all layers over those that stay.
  ideal_by_layers: float
  # The same, were it in proportion to the bytes that a step reads: weights of layers and head, and the cache. Products
  # with those weights are two operations for each of them and row, so their FLOPs give the same but for the cache.
  ideal_by_bytes: float
  # Share of a token's time that each removed layer saves.
  saved_per_layer: float
  # What part that is of what it would save by each ideal.
  of_layers: float
  of_bytes: float
  # Seconds of a step that a layer takes, and that all else takes, by these two models.
  layer_seconds: float
  fixed_seconds: float


def gain(whole: Llama, small: Llama, before: Speed, after: Speed) -> Gain | None:
  """Returns what removing layers gained at one batch and length; None where none was removed or none is decoded."""
  removed = before.layers - after.layers
  if removed < 1 or not (before.decode and after.decode):
    return None
  old, new = (speed.decode.median / speed.new_tokens for speed in (before, after) if speed.decode)
  by_layers = before.layers / after.layers
  by_bytes = step_bytes(whole, before) / step_bytes(small, after)
  saved = 1 - new / old
  layer = (old - new) / removed
  return Gain(
    removed=removed,
    decode=old / new,
    ideal_by_layers=by_layers,
    ideal_by_bytes=by_bytes,
    saved_per_layer=saved / removed,
    of_layers=saved / (1 - 1 / by_layers),
    of_bytes=saved / (1 - 1 / by_bytes),
    layer_seconds=layer,
    fixed_seconds=old - before.layers * layer,
  )


def step_bytes(model: Llama, speed: Speed) -> int:
  """Returns the bytes that decoding one token a row reads: all weights but an untied embedding, and the whole cache."""
  config, size = model.config, model.embedding.dtype.itemsize
  weights = sum(leaf.nbytes for leaf in jax.tree.leaves(model))
  # Of an embedding that is not the head too, a row is read for each token.
  weights -= 0 if model.head is None else model.embedding.nbytes
  slots = speed.batch * (speed.prompt_tokens + speed.new_tokens)
  return weights + 2 * speed.layers * config.kv_heads * config.head_dim * slots * size
