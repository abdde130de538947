"""From a wish to a keep-list: how many layers go, and which."""

import dataclasses
from collections.abc import Callable, Sequence

from jaxchop.config import Criterion, PruneConfig
from jaxchop.errors import UsageError
from jaxchop.layers import parse_layers, without
from jaxchop.prune.patterns import removed_by
from jaxchop.prune.score import Score


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
  """What a model weighs, so that a target size can be met."""

  # Decoder layers of the whole model.
  layers: int
  # Parameters of one layer.
  per_layer: int
  # Parameters outside the layers.
  outside: int
  # Bytes a parameter in the written model.
  parameter_bytes: int

  def parameters(self, layers: int) -> int:
    return self.outside + layers * self.per_layer


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
  """The layers kept, and by what rule, in words."""

  keep: tuple[int, ...]
  criterion: str
  definition: str


def choose(settings: PruneConfig, sizes: Sizes, score_of: Callable[[Criterion], Score]) -> Choice:
  """Returns what `settings` ask for; `score_of` is asked once the wish has proven possible, as scoring takes long.

  Raises UsageError when the settings say too little, too much or the impossible.
  """
  explicit = [name for name in ("drop", "keep", "pattern", "criterion") if getattr(settings, name) is not None]
  if len(explicit) != 1:
    given = f"not {' and '.join(explicit)}" if explicit else "none is set"
    raise UsageError(f"prune: set exactly one of drop, keep, pattern, criterion; {given}")
  if settings.drop is not None:
    _no_target(settings, "drop")
    return Choice(
      keep=_some(without(parse_layers(settings.drop, sizes.layers), sizes.layers)),
      criterion="list",
      definition=f"drop {settings.drop}",
    )
  if settings.keep is not None:
    _no_target(settings, "keep")
    return Choice(keep=parse_layers(settings.keep, sizes.layers), criterion="list", definition=f"keep {settings.keep}")
  count = how_many(settings, sizes)
  candidates = range(settings.protect_first, sizes.layers - settings.protect_last)
  if count > len(candidates):
    raise UsageError(
      f"prune: {count} of {sizes.layers} layers cannot go while the first {settings.protect_first} and the last "
      f"{settings.protect_last} are protected; ask for at most {max(len(candidates), 0)}"
    )
  if settings.pattern is not None:
    drop = removed_by(settings.pattern, candidates, count, seed=settings.seed)
    words = f"{settings.pattern} order" + (f", seed {settings.seed}" if settings.pattern == "random" else "")
    return Choice(keep=without(drop, sizes.layers), criterion=settings.pattern, definition=words)
  assert settings.criterion is not None
  chosen = score_of(settings.criterion)
  drop = lowest(chosen.per_layer, candidates, count)
  return Choice(keep=without(drop, sizes.layers), criterion=chosen.name, definition=chosen.definition)


def lowest(per_layer: Sequence[float], candidates: Sequence[int], count: int) -> tuple[int, ...]:
  """Returns the `count` candidates with the lowest scores, sorted; of equal ones the later layer goes first."""
  return tuple(sorted(sorted(candidates, key=lambda layer: (per_layer[layer], -layer))[:count]))


def how_many(settings: PruneConfig, sizes: Sizes) -> int:
  """Returns the number of layers to drop. Raises UsageError unless exactly one reachable target is set."""
  targets = _targets(settings)
  if len(targets) != 1:
    given = f"{' and '.join(targets)} are set" if targets else "none is set"
    raise UsageError(f"prune: set exactly one of count, ratio, parameters, bytes; {given}")
  ((target, wanted),) = targets.items()
  match target:
    case "count":
      count = int(wanted)
    case "ratio":
      count = round(wanted * sizes.layers)
    case "parameters":
      count = _down_to(int(wanted), sizes, target, 1)
    case _:
      count = _down_to(int(wanted), sizes, target, sizes.parameter_bytes)
  if not 0 <= count < sizes.layers:
    raise UsageError(
      f"prune.{target}: {count} of {sizes.layers} layers would go; at least one must stay, none may be added"
    )
  return count


def _down_to(limit: int, sizes: Sizes, name: str, unit: int) -> int:
  keep = min((limit // unit - sizes.outside) // sizes.per_layer, sizes.layers)
  if keep < 1:
    least = sizes.parameters(1) * unit
    raise UsageError(f"prune.{name}: {limit:,} cannot be reached by dropping layers; one layer alone leaves {least:,}")
  return sizes.layers - keep


def _targets(settings: PruneConfig) -> dict[str, float]:
  values = {name: getattr(settings, name) for name in ("count", "ratio", "parameters", "bytes")}
  return {name: value for name, value in values.items() if value is not None}


def _no_target(settings: PruneConfig, chooser: str) -> None:
  if targets := _targets(settings):
    raise UsageError(f"prune.{chooser} names the layers itself; leave out {' and '.join(targets)}")


def _some(keep: tuple[int, ...]) -> tuple[int, ...]:
  if not keep:
    raise UsageError("prune.drop: every layer would go; at least one must stay")
  return keep
