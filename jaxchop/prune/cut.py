"""From a plan to the smaller model: a slice of the list, the merges it names, or a repair fitted on text.

Shapes: N sentences or windows, T tokens.
"""

from collections.abc import Callable, Sequence

import numpy as np

from jaxchop.config import Merging, MergingConfig
from jaxchop.errors import UsageError
from jaxchop.model.llama import Llama
from jaxchop.prune.laco import LacoConfig, laco, laco_to
from jaxchop.prune.linear_map import linear_map
from jaxchop.prune.merge import Merged, apply_merges
from jaxchop.prune.mka import mka
from jaxchop.prune.plan import Plan, Repair
from jaxchop.prune.slm import SlmConfig, slm
from jaxchop.prune.streamline import StreamlineConfig, streamline
from jaxchop.prune.surgery import keep_layers

# Sentences with a mask that is false at padding: ids_NT, mask_NT.
Text = tuple[np.ndarray, np.ndarray]
# What each method is, with its source.
MERGES: dict[Merging, str] = {
  "laco": "LaCo: rear layers collapse into one before them while the last hidden states stay alike (arXiv 2402.11187)",
  "slm": "SLM: a sliding window of layers merges while the last hidden states stay alike (arXiv 2502.19159)",
  "mka": "MKA: neighbours merge by the similarity of their activations' manifolds (arXiv 2406.16330)",
  "streamline": "LLM-Streamline: one trained layer stands for a run (arXiv 2403.19135)",
  "linear_map": "ReplaceMe: a linear map folded into the layer before stands for a run (arXiv 2505.02819)",
}


def merged(model: Llama, method: Merging, config: MergingConfig, count: int | None, text: Text) -> Merged:
  """Returns what laco, slm or mka make of a model; `count` layers go, or as many as the threshold lets.

  Raises UsageError when the settings do not say how far to go, or say it twice.
  """
  if count is None and method == "mka":
    raise UsageError("prune.merge: mka needs to know how many layers go; set prune.count or another target")
  if count is not None and config.threshold is not None:
    raise UsageError(f"merging.threshold: a target of prune sets it; leave out the threshold or {count} layers")
  size, bound = config.batch_size, {} if config.threshold is None else {"threshold": config.threshold}
  if method == "mka":
    assert count is not None
    return mka(model, *text, count, order=config.order, beta=config.beta, batch_size=size)
  if method == "slm":
    if count is not None:
      raise UsageError("prune.merge: slm goes by merging.threshold alone; leave out prune.count and its like")
    return slm(model, *text, SlmConfig(mode=config.mode, **bound), batch_size=size)
  settings = LacoConfig(
    layers_per_merge=config.layers_per_merge,
    interval=config.interval,
    lowest=config.lowest,
    highest=config.highest,
    mode=config.mode,
    **bound,
  )
  if count is None:
    return laco(model, *text, settings, batch_size=size)
  return laco_to(model, *text, settings, count, batch_size=size)


def repair_of(method: Merging, drop: Sequence[int]) -> Repair:
  """Returns what stands in for the layers that a choice would drop. Raises UsageError where they are no run."""
  if not drop or list(drop) != list(range(drop[0], drop[-1] + 1)):
    raise UsageError(
      f"prune.merge: {method} stands for one run of layers, the choice is {list(drop)}; choose a run, as --drop 20:26 "
      "or by a criterion of runs (angular, cosine, perplexity_run)"
    )
  assert method in ("streamline", "linear_map")
  return Repair(method=method, start=drop[0], end=drop[-1] + 1)


def cut(model: Llama, plan: Plan, config: MergingConfig, text: Callable[[], Text]) -> Llama:
  """Returns the model that a plan makes of the whole one; `text` is asked where weights are fitted on it."""
  if plan.merges:
    return apply_merges(model, plan.merges)
  if plan.repair is None:
    return keep_layers(model, plan.keep)
  start, end = plan.repair.start, plan.repair.end
  if plan.repair.method == "linear_map":
    return linear_map(model, *text(), start, end, ridge=config.ridge, batch_size=config.batch_size).model
  settings = StreamlineConfig(
    start=start,
    end=end,
    epochs=config.epochs,
    batch_size=config.batch_size,
    learning_rate=config.learning_rate,
    final_learning_rate=config.final_learning_rate,
    weight_decay=config.weight_decay,
    seed=config.seed,
  )
  return streamline(model, *text(), settings).model
