"""Recipes out of YAML files, for what takes several of them."""

from collections.abc import Sequence
from pathlib import Path

from jsonargparse import ActionConfigFile, ArgumentError, ArgumentParser

from jaxchop.config import Recipe
from jaxchop.errors import UsageError


def read_recipe(files: Sequence[Path], out: str | None = None) -> Recipe:
  """Returns the recipe that several files make, each laid over those before it.

  Its run folder is `out`, if given, whatever they name. Raises UsageError where one is missing or holds what is no
  setting.
  """
  for file in files:
    if not file.is_file():
      raise UsageError(f"{file}: no such file; name a recipe (.yaml)")
  parser = ArgumentParser(exit_on_error=False)
  parser.add_argument("--config", action=ActionConfigFile)
  parser.add_class_arguments(Recipe, sub_configs=False)
  argv = [part for file in files for part in ("--config", str(file))]
  try:
    found = parser.instantiate(parser.parse_args([*argv, *(() if out is None else ("--out", out))]))
  except (ArgumentError, UsageError) as error:
    raise UsageError(f"{', '.join(map(str, files))}: {' '.join(str(error).split())}") from error
  return Recipe(**{name: found[name] for name in Recipe.__dataclass_fields__})
