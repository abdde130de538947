"""The tokenizer of a checkpoint, and the ids that end its texts."""

import json
import tempfile
from pathlib import Path

import transformers

from jaxchop.errors import JaxchopError
from jaxchop.hub.checkpoint import Checkpoint
from jaxchop.hub.folder import parse_json, shown

_GENERATION = "generation_config.json"


def load_tokenizer(checkpoint: Checkpoint) -> transformers.PreTrainedTokenizerFast:
  """Returns the tokenizer with its chat template; no code of the checkpoint runs. Raises JaxchopError without one."""
  with tempfile.TemporaryDirectory(prefix="jaxchop-") as folder:
    for name in checkpoint.assets:
      (Path(folder) / name).write_bytes(checkpoint.asset(name) or b"")
    # What class the tokenizer has may hang on the model's type.
    (Path(folder) / "config.json").write_text(json.dumps(checkpoint.config))
    try:
      tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # the tokenizers library raises nothing more special for a broken file
      reason = shown(str(error).strip().partition("\n")[0])
      raise JaxchopError(f"{checkpoint.name}: its tokenizer cannot be loaded: {reason}") from error
  if not isinstance(tokenizer, transformers.PreTrainedTokenizerFast):
    raise JaxchopError(f"{checkpoint.name}: its tokenizer has no tokenizer.json; save it once with transformers")
  return tokenizer


def eos_ids(checkpoint: Checkpoint) -> tuple[int, ...]:
  """Returns the ids that end a text, of generation_config.json or else config.json; empty if neither names one."""
  generation = parse_json(checkpoint.asset(_GENERATION) or b"{}", f"{checkpoint.path}/{_GENERATION}")
  for where, settings in ((_GENERATION, generation), ("config.json", checkpoint.config)):
    value = settings.get("eos_token_id")
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(type(id_) is int for id_ in ids):
      raise JaxchopError(f"{checkpoint.path}/{where}: eos_token_id is {shown(value)}; expected ids")
    if ids:
      return tuple(ids)
  return ()
