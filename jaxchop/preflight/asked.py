"""What a recipe asks to be trained, as far as shapes go: how many layers stay matters, which of them does not."""

import dataclasses
from pathlib import Path
from typing import NoReturn

import jax

from jaxchop.config import Recipe
from jaxchop.data.packed import read_manifest
from jaxchop.data.texts import is_cache
from jaxchop.data.written import is_written
from jaxchop.errors import UsageError
from jaxchop.hub.architectures import Shape, shape_of
from jaxchop.model.tree import abstract
from jaxchop.preflight.shapes import Training
from jaxchop.prune.plan import Plan
from jaxchop.prune.select import Sizes, choose, how_many, targets, unprotected
from jaxchop.recover.teacher import stands_beside
from jaxchop.recover.trainable import replacements

# Merges that choose the layers themselves.
_CHOOSERS = ("laco", "slm", "mka")


def training_of(recipe: Recipe, plan: Plan | None = None, kept: int | None = None) -> Training:
  """Returns the recovery of a recipe; its layers are those of `plan`, `kept` in number, or as the recipe says.

  Raises UsageError where nothing is trained, or where what is trained depends on weights.
  """
  whole, config = shape_of(recipe.model), recipe.recover
  if config.steps < 1:
    raise UsageError(f"recover.steps is {config.steps}: this recipe trains nothing, so there is no step to compile")
  if plan is not None and plan.layers != whole.layers:
    raise UsageError(f"--plan: made for a model of {plan.layers} layers, {recipe.model} has {whole.layers}")
  if config.trainable == "replacement":
    if plan is None:
      raise UsageError("recover.trainable: which layers a merge replaces is known of its plan alone; give --plan")
    config = dataclasses.replace(config, trainable="partial", partial=replacements(plan))
  layers = kept if kept is not None else len(plan.keep) if plan is not None else kept_by(recipe, whole)
  if not 1 <= layers <= whole.layers:
    raise UsageError(f"--layers is {layers}; {recipe.model} has {whole.layers}, and at least one stays")
  teacher = None
  if stands_beside(config.distill):
    teacher = whole if config.distill.teacher is None else shape_of(config.distill.teacher)
  return Training(student=Shape(whole.architecture, layers), config=config, teacher=teacher, segments=_segments(recipe))


def kept_by(recipe: Recipe, whole: Shape) -> int:
  """Returns how many layers a recipe's `prune` leaves."""
  prune, sizes = recipe.prune, _sizes(recipe, whole)
  if prune.drop is not None or prune.keep is not None:
    return len(choose(prune, sizes, _no_scores).keep)
  if prune.merge in _CHOOSERS and not targets(prune):
    raise UsageError(f"prune.merge: by its threshold {prune.merge} finds out how many layers go; say --layers")
  count = how_many(prune, sizes)
  if count > len(free := unprotected(prune, whole.layers)):
    raise UsageError(f"prune: {count} of {whole.layers} layers cannot go while only {len(free)} are not protected")
  return whole.layers - count


def _no_scores(criterion: str, keep: tuple[int, ...]) -> NoReturn:
  raise UsageError(f"prune.criterion: {criterion} of {len(keep)} layers is not known here; say --layers")


def _sizes(recipe: Recipe, whole: Shape) -> Sizes:
  """Returns what the whole model weighs in the type that it is written in; unset, as most models are, in two bytes."""
  one, two = (sum(leaf.size for leaf in jax.tree.leaves(abstract(whole.architecture, n))) for n in (1, 2))
  width = 4 if recipe.export.dtype == "float32" else 2
  return Sizes(layers=whole.layers, per_layer=two - one, outside=2 * one - two, parameter_bytes=width)


def _segments(recipe: Recipe) -> bool:
  """Returns whether batches will say where documents end, as far as that is known before the text is read."""
  named = [*recipe.data.corpora.values()] or [recipe.data.source]
  return any(is_written(name) or (Path(name).is_dir() and is_cache(name) and _apart(name)) for name in named)


def _apart(cache: str) -> bool:
  return bool(read_manifest(Path(cache)).segments)
