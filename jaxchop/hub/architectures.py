"""What a model is as numbers, without its weights: what a folder, a GGUF file or the hub says, or what is well known.

The config.json of the Llamas that recipes name most stand in architectures.json: their pages ask for a login, and to
plan a training takes no more than these few numbers, which do not change.
"""

import functools
import json
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from jaxchop.hub.download import config_file, is_hub_id
from jaxchop.hub.folder import read_json
from jaxchop.hub.hf_config import layer_count, parse_config
from jaxchop.hub.load import open_checkpoint
from jaxchop.model.config import LlamaConfig

# What a tuned model's name has on top of its base's.
_TUNED = ("-Instruct", "-chat")


class Shape(NamedTuple):
  """A model without weights."""

  architecture: LlamaConfig
  layers: int


def shape_of(name: str) -> Shape:
  """Returns the shape of the model that a recipe names; a folder may hold config.json alone.

  Raises UsageError on a name that means nothing, JaxchopError on what is no Llama.
  """
  folder = Path(name).expanduser()
  if folder.is_dir() and not (folder / "plan.json").is_file():
    return _parsed(read_json(folder, "config.json"), str(folder / "config.json"))
  if not folder.exists() and is_hub_id(name):
    if (config := _known().get(_base(name))) is not None:
      return _parsed(config, name)
    found = config_file(name)
    return _parsed(read_json(found.parent, found.name), name)
  checkpoint = open_checkpoint(name)
  return Shape(checkpoint.architecture, checkpoint.layers)


def _parsed(config: dict[str, Any], where: str) -> Shape:
  return Shape(parse_config(config, where), layer_count(config, where))


def _base(name: str) -> str:
  """Returns the name of the model whose shape a tuned one has."""
  plain = name.partition("@")[0]
  for word in _TUNED:
    plain = plain.replace(word, "")
  return plain


@functools.cache
def _known() -> dict[str, dict[str, Any]]:
  return json.loads((files("jaxchop.hub") / "architectures.json").read_text(encoding="utf-8"))
