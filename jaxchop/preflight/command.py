"""`jaxchop preflight`: what a recipe's training would need and take on TPU slices, from their compiler alone."""

import dataclasses
import logging
from pathlib import Path
from typing import Any

from jaxchop.config import Recipe
from jaxchop.errors import UsageError
from jaxchop.files import cache_folder
from jaxchop.hub.architectures import shape_of
from jaxchop.parallel.topology import devices_of
from jaxchop.preflight.alone import alone
from jaxchop.preflight.asked import training_of
from jaxchop.preflight.question import Question, answer, others
from jaxchop.preflight.report import program, report
from jaxchop.preflight.search import Tried, fastest, nearest
from jaxchop.prune.plan import Plan

log = logging.getLogger("jaxchop")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wishes:
  """What is asked for beside the figures of the step."""

  # What an hour of a chip costs.
  price: float | None = None
  # Figures of other meshes and remat policies.
  search: bool = False
  # Figures of other numbers of layers.
  sweep: bool = False
  # Other programs of the recipe to compile: held_out, evaluation, decode.
  programs: tuple[str, ...] = ()
  # File for the compiled step, which recover.program loads.
  save: Path | None = None


def preflight(
  recipe: Recipe,
  topology: str,
  slices: int = 1,
  *,
  plan: Plan | None = None,
  layers: int | None = None,
  wishes: Wishes = Wishes(),
) -> dict[str, Any]:
  """Returns the figures of a recipe's training step on so many slices of a topology, as plain JSON.

  Its layers are those of `plan`, or `layers` in number, or as the recipe says. Where it does not fit, `nearest` holds
  the figures of settings that do, or None. What is wished for stands beside them: `settings_tried`, the fastest first,
  `sweep` and `programs`.
  """
  question = Question(training=training_of(recipe, plan, layers), topology=topology, slices=slices)
  whole = shape_of(recipe.model).layers
  content = {"model": recipe.model} | alone(figures, question, whole, wishes, cache_folder() / "preflight")
  if wishes.programs:
    told = alone(others, question, recipe.evaluate, wishes.programs, cache_folder() / "preflight")
    content["programs"] = {name: program(found, recipe.evaluate, name) for name, found in told.items()}
  return content


def figures(question: Question, whole: int, wishes: Wishes, cache: Path) -> dict[str, Any]:
  """Returns what `preflight` does of a model of `whole` layers; runs in the process that compiles."""
  kept = question.training.student.layers
  # A name that is no slice is said before anything seems to be compiled.
  devices_of(question.topology, question.slices)
  log.info("Compiling the step of %d layers for %s; this takes minutes", kept, question.topology)
  found: dict[str, Any] | None = None
  content: dict[str, Any] = {"topology": question.topology, "slices": question.slices, "fits": False}
  try:
    found = answer(question, cache, wishes.save)
    content |= report(question, found, wishes.price)
  except UsageError as error:
    # Devices, batch and model that do not divide are a setting that does not fit either.
    if not str(error).startswith("mesh"):
      raise
    content |= {"refused": str(error)}
  if not content["fits"]:
    log.info("It does not fit; looking for settings that do")
    content["nearest"] = _told(nearest(question, found, cache), wishes.price)
  if wishes.search:
    content["settings_tried"] = [_told(each, wishes.price) for each in fastest(question, cache)]
  if wishes.sweep:
    content["sweep"] = swept(question, whole, wishes.price, cache)
  return content


def swept(question: Question, whole: int, price: float | None, cache: Path) -> list[dict[str, Any]]:
  """Returns the figures of the whole model, half of it, and what the recipe keeps: between them cost is linear."""
  kept = question.training.student.layers
  lines = []
  for layers in sorted({whole, kept, max(whole // 2, 1)}, reverse=True):
    each = question.of_layers(layers)
    log.info("Compiling the step of %d layers", layers)
    lines.append({"removed": whole - layers} | report(each, answer(each, cache), price))
  return lines


def _told(tried: Tried | None, price: float | None) -> dict[str, Any] | None:
  return None if tried is None else {"change": tried.words} | report(tried.question, tried.found, price)
