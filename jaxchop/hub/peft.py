"""Adapters as the peft library reads them: a folder of two files beside the model that they were trained on.

peft names a module by its Hugging Face path behind `base_model.model.` and keeps both thin matrices as [out, in].
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from jaxchop.hub.names import hf_name
from jaxchop.hub.staging import MANIFEST, staged, write_file
from jaxchop.training import AdapterConfig

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_LEAVES = {"a": "lora_A.weight", "b": "lora_B.weight", "magnitude": "lora_magnitude_vector"}


def write_adapter(
  trained: Mapping[str, np.ndarray],
  config: AdapterConfig,
  out: Path,
  *,
  base: str,
  provenance: Mapping[str, Any],
  overwrite: bool = False,
) -> list[str]:
  """Writes {dotted name: array} of adapters as a folder for peft and returns its files.

  `base` is what loaders find the model under. The folder appears whole or not at all.
  """
  tensors = {_name(name): np.ascontiguousarray(np.asarray(leaf, np.float32).T) for name, leaf in trained.items()}
  settings = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "base_model_name_or_path": base,
    "r": config.rank,
    "lora_alpha": config.alpha,
    "lora_dropout": config.dropout,
    "target_modules": sorted({name.split(".")[-3] for name in tensors if name.endswith("lora_A.weight")}),
    "use_dora": any(name.endswith(".magnitude") for name in trained),
    "bias": "none",
    "fan_in_fan_out": False,
    "inference_mode": True,
  }
  contents = {CONFIG: json.dumps(settings, indent=2).encode(), WEIGHTS: save(tensors, metadata={"format": "pt"})}
  with staged(out, overwrite=overwrite) as folder:
    for name, content in contents.items():
      write_file(folder / name, content)
    write_file(folder / MANIFEST, json.dumps({"files": [*contents], **provenance}, indent=2).encode())
  return [*contents, MANIFEST]


def _name(dotted: str) -> str:
  module, _, leaf = dotted.rpartition(".")
  return f"base_model.model.{hf_name(f'{module}.kernel').removesuffix('weight')}{_LEAVES[leaf]}"
