"""Numbers as people read them: 134.5 M, 269 MB, 1.24×, −15.8 %, 7 min 12 s."""

import math
import re

_NBSP = "\u00a0"
_MINUS = "\u2212"
# Control characters, halves of surrogate pairs, and marks that turn the text around them.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]")


def count(number: float) -> str:
  """A count exact below a hundred thousand, then in M and B with four digits."""
  if abs(number) < 100_000:
    return f"{number:,.0f}"
  for scale, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
    if abs(number) >= scale:
      return f"{_digits(number / scale, 4)}{_NBSP}{unit}"
  return f"{number / 1e3:.1f}{_NBSP}k"


def size(number_of_bytes: float) -> str:
  """Bytes in decimal units with three digits."""
  for scale, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
    if number_of_bytes >= scale:
      return f"{_digits(number_of_bytes / scale, 3)}{_NBSP}{unit}"
  return f"{number_of_bytes:.0f}{_NBSP}bytes"


def number(value: float) -> str:
  """A perplexity, a loss or a rate: two decimals below 100, one below 1000, none above."""
  if not math.isfinite(value):
    return "not a number" if math.isnan(value) else "∞" if value > 0 else f"{_MINUS}∞"
  if abs(value) >= 1e7:
    return f"{value:.2e}"
  decimals = 2 if abs(value) < 100 else 1 if abs(value) < 1000 else 0
  return f"{value:,.{decimals}f}".replace("-", _MINUS)


def bits(value: float) -> str:
  """Bits per byte, with the third decimal that tells models apart."""
  return f"{value:.3f}" if math.isfinite(value) else number(value)


def ratio(value: float, base: float) -> str:
  """`value` in multiples of `base`, empty where that says nothing."""
  if not _comparable(value, base):
    return ""
  return f"{number(value / base)}×"


def change(value: float, base: float) -> str:
  """How much more or less than `base`, in percent, empty where that says nothing."""
  if not _comparable(value, base):
    return ""
  share = 100 * (value - base) / base
  sign = _MINUS if share < 0 else "+"
  return "" if round(share, 1) == 0 else f"{sign}{abs(share):,.1f}{_NBSP}%"


def percent(share: float) -> str:
  """A share as whole percent."""
  return f"{100 * share:.0f}{_NBSP}%".replace("-", _MINUS) if math.isfinite(share) else number(share)


def figure(value: float, error: float | None, unit: str) -> str:
  """A figure by its unit (evaluate/figures.py), with its standard error."""
  if unit == "share":
    return percent(value) + ("" if error is None else f" ± {100 * error:.1f}")
  words = bits(value) if unit == "bits" else number(value)
  return words + ("" if error is None else f" ± {number(error)}")


def duration(seconds: float) -> str:
  """Seconds as hours, minutes and seconds, the two largest of them."""
  if not math.isfinite(seconds) or seconds < 10:
    return f"{seconds:.1f}{_NBSP}s"
  whole = round(seconds)
  hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
  if hours:
    return f"{hours:,}{_NBSP}h {minutes}{_NBSP}min"
  return f"{minutes}{_NBSP}min {rest}{_NBSP}s" if minutes else f"{rest}{_NBSP}s"


def mark(index: int) -> str:
  """A footnote's mark, counted from 0: ¹ ² ³."""
  return str(index + 1).translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹"))


def criterion(name: str) -> str:
  """A criterion's name in words."""
  return name.replace("_", " ").strip()


def model_name(source: str) -> str:
  """A model's name without the folders of the machine it was read on; a hub id stays whole."""
  if source.startswith(("/", ".", "~")) or "\\" in source or source.count("/") > 1:
    return source.replace("\\", "/").rstrip("/").rpartition("/")[2] or source
  return source


def printable(text: str) -> str:
  """The text with a replacement mark for whatever a file or a page cannot hold."""
  return _UNPRINTABLE.sub("\ufffd", text)


def _comparable(value: float, base: float) -> bool:
  return math.isfinite(value) and math.isfinite(base) and base > 0


def _digits(value: float, digits: int) -> str:
  """`value` from 1 to 1000 with at most so many digits in all."""
  before = len(f"{value:.0f}")
  text = f"{value:.{max(0, digits - before)}f}"
  return text.rstrip("0").rstrip(".") if "." in text else text
