"""What a model folder says of itself, read before anything is judged; and one line of a judgement."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxchop.errors import JaxchopError
from jaxchop.hub.folder import parse_json, read_json, regular_file
from jaxchop.hub.hf_config import layer_count
from jaxchop.hub.safetensors import Stored, read_headers
from jaxchop.hub.staging import MANIFEST


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Line:
  """One thing that was looked at."""

  name: str
  # None: it could not be looked at; `detail` says why.
  ok: bool | None
  # What was found, or what is wrong and where.
  detail: str


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
  """A folder's own statements, not yet compared with each other."""

  folder: Path
  # config.json.
  config: dict[str, Any]
  # generation_config.json, empty where there is none.
  generation: dict[str, Any]
  # tokenizer_config.json, empty where there is none.
  tokenizer: dict[str, Any]
  # Highest token id in tokenizer.json, None where there is no such file.
  top_token: int | None
  # jaxchop.json, None where jaxchop did not write the folder.
  manifest: dict[str, Any] | None
  # {tensor: where it lies}.
  tensors: Mapping[str, Stored]
  # Names of everything in the folder.
  files: frozenset[str]

  @property
  def layers(self) -> int:
    return layer_count(self.config, self.where)

  @property
  def where(self) -> str:
    return str(self.folder / "config.json")


def read_facts(folder: Path) -> Facts:
  """Returns what the folder says; raises JaxchopError where a file cannot even be read."""
  files = frozenset(path.name for path in folder.iterdir())

  def optional(name: str) -> dict[str, Any]:
    return read_json(folder, name) if name in files else {}

  return Facts(
    folder=folder,
    config=read_json(folder, "config.json"),
    generation=optional("generation_config.json"),
    tokenizer=optional("tokenizer_config.json"),
    top_token=_top_token(folder) if "tokenizer.json" in files else None,
    manifest=_manifest(optional(MANIFEST), str(folder / MANIFEST)),
    tensors=read_headers(folder),
    files=files,
  )


def _manifest(content: dict[str, Any], where: str) -> dict[str, Any] | None:
  for key in ("source", "provenance", "tensors"):
    if not isinstance(content.get(key, {}), dict):
      raise JaxchopError(f"{where}: {key} is not an object; the file was changed, export again")
  keep = content.get("keep", [])
  if not isinstance(keep, list) or not all(type(layer) is int for layer in keep):
    raise JaxchopError(f"{where}: keep is not a list of layers; the file was changed, export again")
  return content or None


def _top_token(folder: Path) -> int | None:
  path = regular_file(folder, "tokenizer.json")
  content = parse_json(path.read_bytes(), str(path))
  model, added = content.get("model"), content.get("added_tokens")
  vocab = model.get("vocab") if isinstance(model, dict) else None
  # Unigram models store a list of pieces, the others a map to ids.
  ids = list(range(len(vocab))) if isinstance(vocab, list) else list(vocab.values()) if isinstance(vocab, dict) else []
  ids += [token.get("id") for token in added if isinstance(token, dict)] if isinstance(added, list) else []
  return max((i for i in ids if isinstance(i, int)), default=None)


def plain(value: object) -> str:
  """Returns a setting as JSON spells it."""
  return json.dumps(value, default=str)
