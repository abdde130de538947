"""Typed access to a JSON object that someone else wrote: an absent field is None or empty, a wrong one is named."""

from collections.abc import Mapping
from typing import Any

from jaxchop.errors import JaxchopError


class Fields:
  """One JSON object of `file`; every reader raises JaxchopError with file, field and what was expected."""

  def __init__(self, file: str, values: Any):
    if values is not None and not isinstance(values, Mapping):
      raise JaxchopError(f"{file}: {_short(values)} stands where an object is expected")
    self.file, self.values = file, values or {}

  def text(self, key: str) -> str:
    value = self.values.get(key)
    return "" if value is None else self._typed(key, value, str, "text")

  def flag(self, key: str) -> bool | None:
    value = self.values.get(key)
    return None if value is None else self._typed(key, value, bool, "true or false")

  def number(self, key: str) -> float | None:
    value = self.values.get(key)
    return None if value is None else self._number(key, value)

  def integer(self, key: str) -> int | None:
    value = self.values.get(key)
    return None if value is None else self._integer(key, value)

  def numbers(self, key: str) -> tuple[float | None, ...]:
    return tuple(None if item is None else self._number(key, item) for item in self._list(key))

  def integers(self, key: str) -> tuple[int, ...]:
    return tuple(self._integer(key, item) for item in self._list(key))

  def texts(self, key: str) -> tuple[str, ...]:
    return tuple(self._typed(key, item, str, "text") for item in self._list(key))

  def pairs(self, key: str) -> tuple[tuple[str, float], ...]:
    """An object of numbers; null ones are left out."""
    child = self.child(key)
    return tuple((name, child._number(name, value)) for name, value in child.values.items() if value is not None)

  def number_pairs(self, key: str) -> tuple[tuple[float, float], ...]:
    """A list of [low, high]."""
    rows = [self._typed(key, item, list, "a list of [low, high]") for item in self._list(key)]
    if any(len(row) != 2 for row in rows):
      raise self._wrong(key, rows, "a list of [low, high]")
    return tuple((self._number(key, low), self._number(key, high)) for low, high in rows)

  def rows(self, key: str) -> tuple[tuple[float, ...], ...]:
    """A list of lists of numbers."""
    rows = [self._typed(key, row, list, "a list of lists of numbers") for row in self._list(key)]
    return tuple(tuple(self._number(key, value) for value in row) for row in rows)

  def child(self, key: str) -> "Fields":
    return Fields(f"{self.file}: {key}", self.values.get(key))

  def children(self, key: str) -> list[tuple[str, "Fields"]]:
    """An object of objects."""
    child = self.child(key)
    return [(name, child.child(name)) for name in child.values]

  def items(self, key: str) -> list["Fields"]:
    """A list of objects."""
    return [Fields(f"{self.file}: {key} {index}", item) for index, item in enumerate(self._list(key))]

  def _list(self, key: str) -> list[Any]:
    value = self.values.get(key)
    return [] if value is None else self._typed(key, value, list, "a list")

  def _number(self, key: str, value: Any) -> float:
    if isinstance(value, float):
      return value
    # JSON's true is an int to Python, and an integer of 400 digits is no float.
    if isinstance(value, bool) or not isinstance(value, int) or abs(value) > 1e308:
      raise self._wrong(key, value, "a number")
    return float(value)

  def _integer(self, key: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
      raise self._wrong(key, value, "a whole number")
    return value

  def _typed(self, key: str, value: Any, kind: type, words: str) -> Any:
    if not isinstance(value, kind):
      raise self._wrong(key, value, words)
    return value

  def _wrong(self, key: str, value: Any, expected: str) -> JaxchopError:
    return JaxchopError(
      f"{self.file}: {key} is {_short(value)}, expected {expected}; write the file again with jaxchop"
    )


def _short(value: Any) -> str:
  text = repr(value)
  return text if len(text) <= 60 else f"{text[:57]}..."
