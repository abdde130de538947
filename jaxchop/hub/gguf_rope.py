"""Rotary settings of a GGUF file in the spelling of a config.json.

llama3 scaling has no key of its own there: the converter writes the factor of each frequency as a tensor, from which
the settings are found again. Source: llama.cpp, convert_hf_to_gguf.py and llama-context.cpp.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxchop.errors import JaxchopError
from jaxchop.hub.folder import shown
from jaxchop.hub.gguf_file import Packed, unpack
from jaxchop.hub.hf_rope import parse_rope

_READ = {
  "dimension_count",
  "freq_base",
  "scale_linear",
  "scaling.type",
  "scaling.factor",
  "scaling.original_context_length",
  "scaling.attn_factor",
  "scaling.yarn_beta_fast",
  "scaling.yarn_beta_slow",
  "scaling.finetuned",
}
# Trained lengths that llama3 scaling is looked for with; Llama 3.1 and 3.2 have 8192.
_LENGTHS = [2**power for power in range(13, 18)] + [2048, 4096]


def rope_settings(settings: Mapping[str, Any], factors: Packed | None, head_dim: int, path: Path) -> dict[str, Any]:
  """Returns rope_theta and rope_scaling. `factors` is the tensor of llama3 scaling, where there is one."""
  rope = {key.removeprefix("rope."): value for key, value in settings.items() if key.startswith("rope.")}
  for key, value in rope.items():
    if key not in _READ:
      raise JaxchopError(f"{path}: llama.rope.{shown(key)} is {shown(value)}; that setting is not supported")
    if key != "scaling.type" and not isinstance(value, (int, float)):
      raise JaxchopError(f"{path}: llama.rope.{key} is {shown(value)}; expected a number")
  if rope.get("dimension_count", head_dim) != head_dim:
    rotated = shown(rope["dimension_count"])
    raise JaxchopError(f"{path}: llama.rope.dimension_count is {rotated}; only whole heads ({head_dim}) may rotate")
  theta = rope.get("freq_base", 10_000.0)
  scaling = _scaling(rope, path)
  if factors is not None:
    if factors.shape != (head_dim // 2,):
      raise JaxchopError(f"tensor {factors.name} in {path} has shape {factors.shape}, expected {(head_dim // 2,)}")
    scaling = _llama3(factors, theta, scaling)
  return {"rope_theta": theta, "rope_scaling": scaling}


def _scaling(rope: Mapping[str, Any], path: Path) -> dict[str, Any] | None:
  kind = rope.get("scaling.type", "linear" if "scale_linear" in rope else "none")
  factor = rope.get("scaling.factor", rope.get("scale_linear", 1.0))
  if kind == "none" or (kind == "linear" and factor in (0.0, 1.0)):
    return None
  if kind == "linear":
    return {"rope_type": "linear", "factor": factor}
  if kind != "yarn":
    raise JaxchopError(f"{path}: llama.rope.scaling.type is {shown(kind)}; supported are none, linear and yarn")
  yarn = {
    "rope_type": "yarn",
    "factor": factor,
    "original_max_position_embeddings": rope.get("scaling.original_context_length"),
    "beta_fast": rope.get("scaling.yarn_beta_fast"),
    "beta_slow": rope.get("scaling.yarn_beta_slow"),
  }
  if (attention := rope.get("scaling.attn_factor", 1.0)) != 1.0:
    # llama.cpp multiplies its factor onto the one that yarn has by itself.
    yarn["attention_factor"] = attention * (0.1 * math.log(max(factor, 1.0)) + 1.0)
  return {key: value for key, value in yarn.items() if value is not None}


def _llama3(tensor: Packed, theta: float, scaling: dict[str, Any] | None) -> dict[str, Any] | None:
  """Returns the llama3 settings that give the tensor's divisors; `scaling` where they are all 1."""
  divisor_R = np.ravel(unpack(tensor, slice(None))).astype(np.float32)
  if np.all(divisor_R == 1):
    return scaling
  known = {"rope_type": "llama3", "factor": float(divisor_R.max()), "low_freq_factor": 1.0, "high_freq_factor": 4.0}
  for length in _LENGTHS:
    found = known | {"original_max_position_embeddings": length}
    if scaling is None and np.allclose(llama3_divisors(found, theta, divisor_R.size), divisor_R, rtol=1e-4):
      return found
  raise JaxchopError(
    f"tensor {tensor.name} in {tensor.file} scales frequencies otherwise than llama3 does with low_freq_factor 1 and "
    f"high_freq_factor 4; use the Hugging Face folder of this model instead"
  )


def llama3_divisors(settings: dict[str, Any], theta: float, frequencies: int) -> np.ndarray:
  """Returns by how much llama3 scaling divides each frequency, as llama.cpp's converter writes it."""
  rope = parse_rope({"rope_theta": theta, "rope_scaling": settings}, "llama3")
  assert rope.original_max_positions is not None
  wavelength_R = 2 * np.pi * theta ** (np.arange(frequencies) / frequencies)
  turns_R = rope.original_max_positions / wavelength_R
  smooth_R = np.clip((turns_R - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor), 0, 1)
  return 1 / ((1 - smooth_R) / rope.factor + smooth_R)
