"""Digests that name a tensor's content, and a model's, the same however the model is cut into files."""

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

# What hashlib takes, e.g. an array of uint8 or a memoryview.
Buffer = Any


def start(dtype: np.dtype, shape: tuple[int, ...]) -> Any:
  """Returns a sha256 that has taken the line "bfloat16 [576, 192]"; update it with the little-endian bytes."""
  return hashlib.sha256(f"{dtype.name} {list(shape)}\n".encode())


def tensor_digest(dtype: np.dtype, shape: tuple[int, ...], blocks: Iterable[Buffer]) -> str:
  """Returns the digest, in hex, of a tensor whose bytes come in blocks."""
  total = start(dtype, shape)
  for block in blocks:
    total.update(block)
  return total.hexdigest()


def combine(digests: Mapping[str, str]) -> str:
  """Returns the digest of a model: sha256 over the lines "name digest" of its tensors, in the order of their names."""
  lines = "".join(f"{name} {digests[name]}\n" for name in sorted(digests))
  return hashlib.sha256(lines.encode()).hexdigest()
