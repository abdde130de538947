"""A compiled step in a file: preflight writes it, a run on the same kind of devices loads it where all versions agree.

The file says in its first line which program it is of. The rest is JAX's own form, a pickle: who loads a file that
somebody else made runs what they put in it.
"""

import hashlib
import importlib.metadata
import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.experimental import serialize_executable

from jaxchop.errors import UsageError
from jaxchop.files import write_bytes

log = logging.getLogger("jaxchop")


def program_digest(lowered: Any, options: Mapping[str, Any], devices: Sequence[jax.Device]) -> str:
  """Returns a name for what compiling gives: of program, options, devices and compiler versions."""
  slices = len({getattr(device, "slice_index", 0) for device in devices})
  versions = [jax.__version__, importlib.metadata.version("jaxlib"), os.environ.get("XLA_FLAGS", "")]
  if devices[0].platform == "tpu":
    versions.append(importlib.metadata.version("libtpu"))
  key = json.dumps([versions, devices[0].device_kind, len(devices), slices, dict(options)], sort_keys=True)
  return hashlib.sha256(key.encode() + lowered.as_text().encode()).hexdigest()


def save(compiled: Any, digest: str, path: Path) -> None:
  """Writes a compiled program; raises JaxchopError naming the file when the disk refuses."""
  payload, _, _ = serialize_executable.serialize(compiled)
  write_bytes(path, json.dumps({"program": digest}).encode() + b"\n" + payload)


def saved_digest(path: Path) -> str | None:
  """Returns which program a file holds; None where it holds none."""
  try:
    with path.open("rb") as file:
      return json.loads(file.readline(1000))["program"]
  except (OSError, ValueError, KeyError, TypeError):
    return None


def load(path: Path, digest: str, lowered: Any, devices: Sequence[jax.Device]) -> Any | None:
  """Returns the compiled program in a file, or None, and says so, where it is of other settings, devices or versions.

  Raises UsageError where there is no such file.
  """
  if not path.is_file():
    raise UsageError(f"recover.program: {path} is no file; `jaxchop preflight --save` writes it, or leave it out")
  if saved_digest(path) != digest:
    log.info("%s is of other settings, devices or versions of JAX and its compiler: compiling anew", path)
    return None
  payload = path.read_bytes().partition(b"\n")[2]
  trees = jax.tree.structure(lowered.args_info), lowered.out_tree
  own = [device for device in devices if device.process_index == jax.process_index()]
  return serialize_executable.deserialize_and_load(
    payload, *trees, backend=own[0].client, execution_devices=list(devices)
  )
