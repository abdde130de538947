"""jaxchop.json, what an export says of itself: where it comes from, what was removed, every tensor's digest."""

import importlib.metadata
import json
import platform
from collections.abc import Mapping, Sequence
from typing import Any

from jaxchop.hub.checkpoint import Checkpoint
from jaxchop.layers import in_words

_LIBRARIES = ("jaxchop", "jax", "flax", "numpy")
# Raised when a key changes its meaning.
_FORMAT = 1


def manifest(
  checkpoint: Checkpoint,
  keep: Sequence[int],
  *,
  dtypes: Sequence[str],
  digests: Mapping[str, str],
  source_digest: str,
  files: Sequence[str],
  provenance: Mapping[str, Any],
) -> bytes:
  """Returns the content of jaxchop.json; `provenance` is what the caller knows of how the weights came about."""
  # The commit says what a branch or tag in the name may cease to say.
  name = checkpoint.name.partition("@")[0] if checkpoint.revision else checkpoint.name
  source = {"name": name, "revision": checkpoint.revision, "digest": source_digest, "layers": checkpoint.layers}
  content = {
    "format": _FORMAT,
    "source": source,
    "layers": len(keep),
    "keep": list(keep),
    "drop": [layer for layer in range(checkpoint.layers) if layer not in keep],
    "words": in_words(keep, checkpoint.layers),
    "dtype": "mixed" if len(set(dtypes)) > 1 else dtypes[0],
    "versions": {name: importlib.metadata.version(name) for name in _LIBRARIES} | {"python": platform.python_version()},
    "provenance": dict(provenance),
    "files": sorted(files),
    "digest": 'sha256 over the line "DTYPE [SHAPE]" and the little-endian bytes',
    "tensors": dict(sorted(digests.items())),
  }
  return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()
