"""Layer lists as people write and read them: 0-based, ranges half-open."""

from collections.abc import Iterable, Sequence

from jaxchop.errors import UsageError


def parse_layers(text: str, count: int) -> tuple[int, ...]:
  """Returns the sorted layers that `text` names, as `21:29` (21..28) or `3,7,21:29`, of a model with `count` layers.

  Raises UsageError on anything that is no layer list, a layer outside the model, or a layer named twice.
  """
  layers: list[int] = []
  for part in text.split(","):
    start, colon, stop = part.strip().partition(":")
    if not start.isdecimal() or (colon and not stop.isdecimal()):
      raise UsageError(f"layers {text!r}: {part.strip()!r} is neither a layer nor a range; write 21:29 or 3,7,21:29")
    found = range(int(start), int(stop) if colon else int(start) + 1)
    if not found or found[-1] >= count:
      raise UsageError(
        f"layers {text!r}: {part.strip()!r} is empty or outside 0:{count}; layers are 0-based, ranges half-open"
      )
    layers.extend(found)
  if len(set(layers)) < len(layers):
    raise UsageError(f"layers {text!r}: a layer is named twice")
  return tuple(sorted(layers))


def without(drop: Iterable[int], count: int) -> tuple[int, ...]:
  """Returns the layers of 0..count-1 that are not in `drop`."""
  dropped = set(drop)
  return tuple(layer for layer in range(count) if layer not in dropped)


def spans(layers: Sequence[int]) -> str:
  """Returns sorted layers in words, both ends included: `0..20 and 29..31`."""
  runs: list[list[int]] = []
  for layer in layers:
    if runs and layer == runs[-1][1] + 1:
      runs[-1][1] = layer
    else:
      runs.append([layer, layer])
  words = [str(first) if first == last else f"{first}..{last}" for first, last in runs]
  return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words) or "none"


def in_words(keep: Sequence[int], count: int) -> str:
  """Returns what a keep-list does: `removes layers 21..28, keeps 0..20 and 29..31`."""
  drop = without(keep, count)
  if not drop:
    return f"removes no layer, keeps {spans(keep)}"
  return f"removes {'layer' if len(drop) == 1 else 'layers'} {spans(drop)}, keeps {spans(keep)}"
