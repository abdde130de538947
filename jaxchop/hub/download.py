"""Models of the Hugging Face hub, fetched into its own cache: weights, config and tokenizer, never code or pickle."""

import contextlib
import re
from collections.abc import Generator
from pathlib import Path

import huggingface_hub
from huggingface_hub import errors as hub_errors

from jaxchop.errors import JaxchopError, UsageError
from jaxchop.hub.folder import shown

# What a model folder may hold that jaxchop reads or an export carries; no *.bin, no *.py.
_WANTED = ["model*.safetensors", "model.safetensors.index.json", "*.json", "*.jinja", "*.txt", "tokenizer.model"]
_WANTED += ["LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*", "README.md"]
_HUB_ID = re.compile(r"[A-Za-z0-9_][\w.-]*/[\w.-]+(@[\w./-]+)?", re.ASCII)


def is_hub_id(name: str) -> bool:
  """Returns whether a name has the form org/name or org/name@revision."""
  return _HUB_ID.fullmatch(name) is not None


def snapshot(name: str, revision: str | None = None) -> tuple[Path, str]:
  """Returns the folder of a hub model on this machine, and the commit it is; fetches what is not there yet.

  `name` is org/name or org/name@revision. Raises UsageError on a model or revision that does not exist or is gated,
  JaxchopError where the hub cannot be reached and the cache does not hold the model.
  """
  repo, _, inside = name.partition("@")
  if inside and revision and inside != revision:
    raise UsageError(f"{name} names revision {inside}, but revision {revision} was asked for; give one of them")
  wanted = inside or revision
  with _explained(name, repo, wanted):
    folder = Path(huggingface_hub.snapshot_download(repo, revision=wanted, allow_patterns=_WANTED))
  return folder, folder.name


def config_file(name: str) -> Path:
  """Returns the config.json of a hub model on this machine, fetched alone if it is not there; raises as `snapshot`."""
  repo, _, revision = name.partition("@")
  with _explained(name, repo, revision or None):
    return Path(huggingface_hub.hf_hub_download(repo, "config.json", revision=revision or None))


@contextlib.contextmanager
def _explained(name: str, repo: str, wanted: str | None) -> Generator[None]:
  """Turns the hub's errors into a line about the model."""
  try:
    yield
  except hub_errors.GatedRepoError as error:
    raise UsageError(f"{repo} is gated: accept its terms on its hub page and log in with `hf auth login`") from error
  except hub_errors.RepositoryNotFoundError as error:
    raise UsageError(f"{repo} is not on the hub, or is private and needs `hf auth login`") from error
  except hub_errors.RevisionNotFoundError as error:
    raise UsageError(f"{repo} has no revision {wanted}") from error
  except hub_errors.HFValidationError as error:
    raise UsageError(f"{name} is not a hub id: {shown(error)}") from error
  except (OSError, hub_errors.HTTPError) as error:
    reason = shown(str(error).strip().partition("\n")[0])
    raise JaxchopError(
      f"{repo} is no folder here nor in the hub's cache, and could not be fetched: {reason}"
    ) from error
