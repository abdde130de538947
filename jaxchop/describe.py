"""What a model is, in figures: architecture, parameters by part, bytes, dtype, tokenizer."""

import collections
import dataclasses
import re
from typing import Any

from jaxchop.hub.names import dotted_name, layer_of
from jaxchop.subject import Subject


def describe(subject: Subject) -> dict[str, Any]:
  """Returns the content of `jaxchop inspect --json`; no weight is read."""
  checkpoint, tokenizer = subject.checkpoint, subject.tokenizer
  parts: collections.Counter[str] = collections.Counter()
  dtypes: collections.Counter[str] = collections.Counter()
  size = 0
  for name, tensor in checkpoint.tensors.items():
    if (layer := layer_of(name)) is not None and layer not in subject.keep:
      continue
    count = tensor.bytes // tensor.dtype.itemsize
    parts[_part(dotted_name(name))] += count
    dtypes[tensor.dtype.name] += count
    size += tensor.bytes
  return {
    "model": subject.name,
    "source": checkpoint.name,
    "revision": checkpoint.revision,
    "path": str(checkpoint.path),
    "layers": len(subject.keep),
    "architecture": dataclasses.asdict(checkpoint.architecture),
    "parameters": sum(parts.values()),
    "parameters_by_part": dict(parts),
    "parameters_per_layer": sum(n for part, n in parts.items() if part in _LAYER_PARTS) // len(subject.keep),
    "bytes": size,
    "dtypes": dict(dtypes),
    "tokenizer": {
      "class": type(tokenizer).__name__,
      "vocabulary": len(tokenizer),
      "bos": tokenizer.bos_token,
      "eos": list(subject.eos),
      "chat_template": bool(tokenizer.chat_template),
    },
    "files": sorted(checkpoint.assets),
  }


_LAYER_PARTS = ("attention", "mlp", "layer norms")


def _part(dotted: str) -> str:
  inner = re.sub(r"^layers\.\d+\.", "", dotted)
  if inner != dotted:
    return "layer norms" if inner.endswith("norm.scale") else inner.partition(".")[0]
  return {"norm.scale": "final norm"}.get(inner, inner)
