"""From a wish to a keep-list: how many layers go, and which."""

import dataclasses
import math
from collections.abc import Callable, Sequence

from jaxchop.config import PruneConfig
from jaxchop.errors import UsageError
from jaxchop.layers import parse_layers, spans, without
from jaxchop.prune.criteria import DEFINITIONS
from jaxchop.prune.patterns import removed_by
from jaxchop.prune.score import Score

_TARGETS = ("count", "ratio", "parameters", "bytes", "latency")
# Scores by a criterion of the model that the given layers of the whole one make.
ScoreOf = Callable[[str, tuple[int, ...]], Score]


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


def choose(
  settings: PruneConfig,
  sizes: Sizes,
  score_of: ScoreOf,
  layer_share: Callable[[], float] | None = None,
  *,
  more: int = 0,
) -> Choice:
  """Returns what `settings` ask for; `score_of` is asked once the wish has proven possible, as scoring takes long.

  `layer_share` gives the share of the whole model's decode time that one layer takes, for a latency target. A
  target is passed by `more` layers, for something that takes their place. Raises UsageError when the settings say too
  little, too much or the impossible.
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
  count = how_many(settings, sizes, layer_share)
  count += more if count else 0
  candidates = unprotected(settings, sizes.layers)
  if count > len(candidates):
    guarded = spans(without(candidates, sizes.layers))
    raise UsageError(
      f"prune: {count} of {sizes.layers} layers cannot go while layers {guarded} are protected; ask for at most "
      f"{len(candidates)}"
    )
  if settings.pattern is not None:
    drop = removed_by(settings.pattern, candidates, count, seed=settings.seed)
    words = f"{settings.pattern} order" + (f", seed {settings.seed}" if settings.pattern == "random" else "")
    return Choice(keep=without(drop, sizes.layers), criterion=settings.pattern, definition=words)
  return _by_score(settings, sizes.layers, candidates, count, score_of)


def _by_score(settings: PruneConfig, layers: int, candidates: Sequence[int], count: int, score_of: ScoreOf) -> Choice:
  """Drops an equal share of `count` in each round; from the second on, what is left is scored anew."""
  assert settings.criterion is not None
  if not 1 <= settings.rounds <= max(count, 1):
    raise UsageError(f"prune.rounds: {count} layers go, so the rounds are 1 to {max(count, 1)}, not {settings.rounds}")
  keep, definition = tuple(range(layers)), DEFINITIONS[settings.criterion].text
  for number in range(settings.rounds):
    share = count * (number + 1) // settings.rounds - (layers - len(keep))
    found = score_of(settings.criterion, keep)
    places = [place for place, layer in enumerate(keep) if layer in candidates]
    dropped = dropped_by(found, places, share)
    keep, definition = tuple(layer for place, layer in enumerate(keep) if place not in dropped), found.definition
  if settings.rounds > 1:
    definition += f"; in {settings.rounds} rounds, each of which scores anew"
  return Choice(keep=keep, criterion=settings.criterion, definition=definition)


def unprotected(settings: PruneConfig, layers: int) -> tuple[int, ...]:
  """Returns the layers that a count may drop."""
  guarded = set(parse_layers(settings.protect, layers)) if settings.protect else set()
  inner = range(settings.protect_first, layers - settings.protect_last)
  return tuple(layer for layer in inner if layer not in guarded)


def dropped_by(score: Score, candidates: Sequence[int], count: int) -> tuple[int, ...]:
  """Returns the `count` candidates that a score drops, sorted, in the way its criterion chooses.

  Raises UsageError when the scores do not reach so far.
  """
  match DEFINITIONS[score.name].chooses if score.name in DEFINITIONS else "lowest":
    case "run":
      return _lowest_run(score, candidates, count)
    case "order":
      ordered = sum(place < max(score.per_layer) for place in score.per_layer)
      if count > ordered:
        raise UsageError(f"{score.name}: {ordered} layers were ordered, {count} are to go; set score.greedy_rounds")
  return lowest(score.per_layer, candidates, count)


def lowest(per_layer: Sequence[float], candidates: Sequence[int], count: int) -> tuple[int, ...]:
  """Returns the `count` candidates with the lowest scores, sorted; of equal ones the later layer goes first."""
  return tuple(sorted(sorted(candidates, key=lambda layer: (per_layer[layer], -layer))[:count]))


def _lowest_run(score: Score, candidates: Sequence[int], count: int) -> tuple[int, ...]:
  if not count:
    return ()
  assert score.runs is not None
  if count > len(score.runs) or not score.runs[count - 1]:
    raise UsageError(
      f"{score.name}: runs of up to {len(score.runs)} layers were scored, {count} are to go; set score.longest_run"
    )
  starts = [start for start in candidates if set(range(start, start + count)) <= set(candidates)]
  if not starts:
    raise UsageError(f"{score.name}: no run of {count} layers is left between the protected ones; lower the count")
  start = min(starts, key=lambda start: (score.runs[count - 1][start], -start))
  return tuple(range(start, start + count))


def how_many(settings: PruneConfig, sizes: Sizes, layer_share: Callable[[], float] | None = None) -> int:
  """Returns the number of layers to drop. Raises UsageError unless exactly one reachable target is set."""
  found = targets(settings)
  if len(found) != 1:
    given = f"{' and '.join(found)} are set" if found else "none is set"
    raise UsageError(f"prune: set exactly one of {', '.join(_TARGETS)}; {given}")
  ((target, wanted),) = found.items()
  match target:
    case "count":
      count = int(wanted)
    case "ratio":
      count = round(wanted * sizes.layers)
    case "parameters":
      count = _down_to(int(wanted), sizes, target, 1)
    case "bytes":
      count = _down_to(int(wanted), sizes, target, sizes.parameter_bytes)
    case _:
      count = _down_to_latency(wanted, layer_share)
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


def _down_to_latency(wanted: float, layer_share: Callable[[], float] | None) -> int:
  if layer_share is None:
    raise UsageError("prune.latency: the model is not measured here; say how many layers by another target")
  return math.ceil(max(0.0, 1 - wanted) / layer_share())


def targets(settings: PruneConfig) -> dict[str, float]:
  """Returns the targets that are set: {name: value}."""
  values = {name: getattr(settings, name) for name in _TARGETS}
  return {name: value for name, value in values.items() if value is not None}


def _no_target(settings: PruneConfig, chooser: str) -> None:
  if found := targets(settings):
    raise UsageError(f"prune.{chooser} names the layers itself; leave out {' and '.join(found)}")


def _some(keep: tuple[int, ...]) -> tuple[int, ...]:
  if not keep:
    raise UsageError("prune.drop: every layer would go; at least one must stay")
  return keep
