"""SLM: a window of layers slides down from the top and grows while the model's last hidden states stay the same.

Source: arXiv 2502.19159 (AAAI-26) and its released SLM.py. Shapes: N calibration sentences, T tokens.
"""

from dataclasses import dataclass

import numpy as np

from jaxchop.errors import UsageError
from jaxchop.model.llama import Llama
from jaxchop.progress import Bar, stage
from jaxchop.prune.laco import Candidates, LacoMode
from jaxchop.prune.merge import Merge, Merged, Trial, finish


@dataclass(frozen=True, kw_only=True, slots=True)
class SlmConfig:
  """SLM's settings; the default is that reported for Llama-2-13B."""

  # A window grows while the similarity to the whole model is above this, T.
  threshold: float = 0.72
  # The released code's merge with its weight factor of 1, or LaCo's eq. 1; see `merged_block`.
  mode: LacoMode = "telescope"


def slm(model: Llama, ids_NT: np.ndarray, mask_NT: np.ndarray, config: SlmConfig, *, batch_size: int = 8) -> Merged:
  """Returns `model` after SLM's search: each window of layers has become one block in the place of its lowest layer.

  The last layer is never merged. A window that is still growing at layer 0 is merged too; the released code leaves it,
  though it has passed. Similarity as in `Candidates`. A trial says committed where it is the window that was merged.
  `ids_NT` are sentences as int32, `mask_NT` is true where they are no padding, which is on the right; `batch_size` of
  them run at once. Raises UsageError on settings that do not fit the model, JaxchopError on broken sentences.
  """
  if not -1.0 <= config.threshold <= 1.0:
    raise UsageError(f"merging.threshold is {config.threshold}; a cosine lies in -1..1")
  if len(model.layers) < 3:
    raise UsageError(f"slm: the model has {len(model.layers)} layers; it takes 3, as the last one is never merged")
  candidates = Candidates(model, ids_NT, mask_NT, batch_size)
  with stage("Merging layers by SLM", len(model.layers) - 2, "layers tried") as bar:
    merges, tried = _search(candidates, config, len(model.layers), bar)
  return finish(model, merges, [Trial(merge.into, value, merge in merges) for merge, value in tried])


def _search(
  candidates: Candidates, config: SlmConfig, layers: int, bar: Bar
) -> tuple[tuple[Merge, ...], list[tuple[Merge, float]]]:
  """Returns the windows that were merged and all that were tried, with their similarities."""
  merges: tuple[Merge, ...] = ()
  tried: list[tuple[Merge, float]] = []
  high = layers - 2
  for low in range(high - 1, -1, -1):
    merge = _window(low, high, config)
    similarity = candidates.similarity((*merges, merge))
    tried.append((merge, similarity))
    bar.advance(1, f"layers {low}..{high}: similarity {similarity:.3f}")
    if similarity <= config.threshold:
      merges += (_window(low + 1, high, config),) if low + 1 < high else ()
      high = low
  return merges + ((_window(0, high, config),) if high else ()), tried


def _window(low: int, high: int, config: SlmConfig) -> Merge:
  return Merge(into=low, layers=tuple(range(low + 1, high + 1)), mode=config.mode)
