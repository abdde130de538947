"""Which numbers a setting may be, checked where settings are made: before a model is read or a device is asked."""

import math
from typing import Any

from jaxchop.errors import UsageError


def at_least(least: float, settings: Any, group: str, *names: str, below: float = math.inf) -> None:
  """Raises UsageError where one of the named settings is a number outside of least <= x < below."""
  for name in names:
    value = getattr(settings, name)
    if value is not None and not least <= value < below:
      most = "" if below == math.inf else f" and below {below:g}"
      raise UsageError(f"{group}.{name} is {value}; it is at least {least:g}{most}")
