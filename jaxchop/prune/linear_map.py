"""ReplaceMe: a run of layers becomes a linear map of the MLP output before it, folded into that MLP's weights.

Source: arXiv 2505.02819, its least-squares form. Shapes: N calibration sentences, B sentences at once, T tokens,
R real (unpadded) tokens, D width, E width of the target, F MLP width.
"""

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from jaxchop.compiler import Program
from jaxchop.errors import JaxchopError, UsageError
from jaxchop.layers import without
from jaxchop.model.attention import causal_attention
from jaxchop.model.llama import Llama, positions
from jaxchop.model.rope import rotation
from jaxchop.progress import stage
from jaxchop.prune.merge import sentence_batches
from jaxchop.prune.streamline import through
from jaxchop.prune.surgery import keep_layers


@dataclass(frozen=True, kw_only=True, slots=True)
class Mapped:
  """A model with a linear map in place of a run of layers; it has the shapes of one that simply lost them."""

  model: Llama
  # Layers of the whole model that are still there; the one before the run carries the map.
  keep: tuple[int, ...]
  # Share of the run's effect that the map misses on the calibration tokens: 0 is exact, 1 no better than dropping.
  missed: float


def linear_map(
  model: Llama,
  ids_NT: np.ndarray,
  mask_NT: np.ndarray,
  start: int,
  end: int,
  *,
  ridge: float = 1e-8,
  batch_size: int = 8,
) -> Mapped:
  """Returns `model` without the layers start..end-1, whose effect a map T of the MLP output before them stands in for.

  T minimises |mlp_out @ T + attention_residual - state after layer end-1|^2 over all unpadded tokens, by normal
  equations summed in float64 on the host. It is folded into layer start-1's down projection, kernel @ T and bias @ T.
  `ridge`, in units of the mean square of the MLP's outputs, pulls T towards the identity, which is plain dropping; the
  paper's pulls towards zero.

  `ids_NT` are sentences as int32, `mask_NT` is true where they are no padding, which is on the right; `batch_size` of
  them run at once. Raises UsageError on an impossible run, JaxchopError on broken sentences or weights, or where the
  sentences leave the map open.
  """
  _check(start, end, len(model.layers), ridge)
  width = model.config.width
  gram_DD, product_DE, effect = np.zeros((width, width)), np.zeros((width, width)), 0.0
  batches = sentence_batches(ids_NT, mask_NT, batch_size)
  with stage("Fitting a linear map in place of layers", len(ids_NT), "sentences") as bar:
    for ids_BT, mask_BT in batches:
      pair = _observe(model, ids_BT, start, end)
      mlp_RD, change_RE = (np.asarray(a_BTD)[mask_BT].astype(np.float64) for a_BTD in pair)
      gram_DD += mlp_RD.T @ mlp_RD
      product_DE += mlp_RD.T @ change_RE
      effect += float(np.sum(change_RE**2))
      bar.advance(int(mask_BT[:, 0].sum()))
  extra_DE = _solve(gram_DD, product_DE, ridge, start, end)
  missed = effect - 2 * np.sum(extra_DE * product_DE) + np.sum(extra_DE * (gram_DD @ extra_DE))
  keep = without(range(start, end), len(model.layers))
  small = _folded(keep_layers(model, keep), start - 1, np.eye(width) + extra_DE)
  return Mapped(model=small, keep=keep, missed=max(0.0, float(missed / effect)) if effect else 0.0)


def _check(start: int, end: int, layers: int, ridge: float) -> None:
  if start == 0:
    raise UsageError(
      "linear_map.start is 0: the map lives in the MLP of the layer before the run, and there is none; start at 1 or "
      "later"
    )
  if not 1 <= start < end <= layers:
    raise UsageError(
      f"linear_map: start {start} and end {end} name no run of {layers} layers; the run is start..end-1, 0-based"
    )
  if not ridge >= 0:
    raise UsageError(f"merging.ridge is {ridge}; it must be at least 0")


@functools.partial(Program, static_argnames=("start", "end"))
def _observe(model: Llama, ids_BT: jax.Array, start: int, end: int) -> tuple[jax.Array, jax.Array]:
  """Returns mlp_BTD of layer start-1 and change_BTD, what the layers start..end-1 add to the stream after it."""
  layers, turn = [*model.layers], rotation(model.config, positions(ids_BT))
  carrier = layers[start - 1]
  x_BTD = through(layers[: start - 1], model.embed(ids_BT), turn)
  x_BTD = x_BTD + carrier.attention(carrier.attention_norm(x_BTD), turn, causal_attention)
  mlp_BTD = carrier.mlp(carrier.mlp_norm(x_BTD))
  x_BTD = x_BTD + mlp_BTD
  change_BTD = through(layers[start:end], x_BTD, turn).astype(jnp.float32) - x_BTD.astype(jnp.float32)
  return mlp_BTD.astype(jnp.float32), change_BTD


def _solve(gram_DD: np.ndarray, product_DE: np.ndarray, ridge: float, start: int, end: int) -> np.ndarray:
  """Returns T - I: with the identity taken out, the target is what the run adds, and a ridge pulls towards nothing."""
  damped_DD = gram_DD + ridge * np.trace(gram_DD) / len(gram_DD) * np.eye(len(gram_DD))
  try:
    extra_DE = np.linalg.solve(damped_DD, product_DE)
  except np.linalg.LinAlgError as error:
    raise JaxchopError(
      f"linear_map: the MLP outputs before layer {start} span too little; give more sentences or raise merging.ridge"
    ) from error
  if not np.isfinite(extra_DE).all():
    raise JaxchopError(
      f"linear_map: the map in place of layers {start}..{end - 1} is not finite; the weights are broken"
    )
  return extra_DE


def _folded(model: Llama, layer: int, map_DE: np.ndarray) -> Llama:
  """Returns `model` with a layer's down projection followed by the map."""
  down = model.layers[layer].mlp.down
  for leaf in (down.kernel, down.bias):
    if leaf is not None:
      value = leaf[...]
      leaf[...] = jnp.asarray(np.asarray(value, np.float64) @ map_DE, value.dtype)
  return model
