"""jaxchop drops layers of a Llama-family model, recovers it and writes a stock Hugging Face folder.

The names below are the public Python API; each is loaded when it is first asked for, so that importing the package
(as the command line does) costs nothing.
"""

import importlib
from typing import Any

# Public name: the module it lives in, and its name there where that is another.
_API = {
  "AdapterConfig": "jaxchop.training",
  "DataConfig": "jaxchop.config",
  "DistillConfig": "jaxchop.training",
  "EvaluateConfig": "jaxchop.config",
  "ExportConfig": "jaxchop.config",
  "MergingConfig": "jaxchop.config",
  "OptimizerConfig": "jaxchop.training",
  "PartialConfig": "jaxchop.training",
  "PruneConfig": "jaxchop.config",
  "Recipe": "jaxchop.config",
  "RecoverConfig": "jaxchop.training",
  "ScoreConfig": "jaxchop.config",
  "JaxchopError": "jaxchop.errors",
  "compiler_options": "jaxchop.compiler",
  "open_checkpoint": "jaxchop.hub.load",
  "load_model": "jaxchop.hub.load",
  "load_tokenizer": "jaxchop.hub.tokenizer",
  "eos_ids": "jaxchop.hub.tokenizer",
  "export_model": "jaxchop.hub.export",
  "prune_checkpoint": "jaxchop.hub.rewrite",
  "check": "jaxchop.hub.check",
  "Llama": "jaxchop.model.llama",
  "LlamaConfig": "jaxchop.model.config",
  "generate": "jaxchop.model.generate",
  "Sampling": "jaxchop.model.generate",
  "documents": "jaxchop.data.sources",
  "read_splits": "jaxchop.data.texts",
  "first_windows": "jaxchop.data.windows",
  "pack": "jaxchop.data.pack",
  "open_packed": "jaxchop.data.packed",
  "Loader": "jaxchop.data.loader",
  "score": "jaxchop.prune.score",
  "dropped_by": "jaxchop.prune.select",
  "lost_without_each": "jaxchop.prune.search",
  "greedy_by": "jaxchop.prune.search",
  "keep_layers": "jaxchop.prune.surgery",
  "apply_merges": "jaxchop.prune.merge",
  "Merge": "jaxchop.prune.merge",
  "laco": "jaxchop.prune.laco",
  "LacoConfig": "jaxchop.prune.laco",
  "slm": "jaxchop.prune.slm",
  "SlmConfig": "jaxchop.prune.slm",
  "mka": "jaxchop.prune.mka",
  "streamline": "jaxchop.prune.streamline",
  "StreamlineConfig": "jaxchop.prune.streamline",
  "linear_map": "jaxchop.prune.linear_map",
  # Not `recover`: once imported, the room of that name stands in its place.
  "recover_model": "jaxchop.recover.loop:recover",
  "make_step": "jaxchop.recover.step",
  "way_of": "jaxchop.recover.trainable",
  "joined": "jaxchop.parallel.hosts",
  "perplexity": "jaxchop.evaluate.perplexity",
  "Protocol": "jaxchop.evaluate.protocol",
  "run": "jaxchop.pipeline",
  "read_recipe": "jaxchop.recipes",
  # Not by their modules' names, for the same reason.
  "compare_ways": "jaxchop.compare:compare",
  "forecast_training": "jaxchop.forecast:forecast",
}
__all__ = list(_API)


def __getattr__(name: str) -> Any:
  if name not in _API:
    raise AttributeError(f"module 'jaxchop' has no attribute {name!r}")
  module, _, attribute = _API[name].partition(":")
  return getattr(importlib.import_module(module), attribute or name)


def __dir__() -> list[str]:
  return __all__
