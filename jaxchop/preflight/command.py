"""`jaxchop preflight`: what a recipe's training would need and take on TPU slices, from their compiler alone."""

import logging
from typing import Any

from jaxchop.config import Recipe
from jaxchop.preflight.alone import ask
from jaxchop.preflight.asked import training_of
from jaxchop.preflight.compiled import Question
from jaxchop.preflight.report import report
from jaxchop.progress import stage
from jaxchop.prune.plan import Plan

log = logging.getLogger("jaxchop")


def preflight(
  recipe: Recipe,
  topology: str,
  slices: int = 1,
  *,
  plan: Plan | None = None,
  layers: int | None = None,
  price: float | None = None,
) -> dict[str, Any]:
  """Returns the figures of a recipe's training step on so many slices of a topology, as plain JSON."""
  training = training_of(recipe, plan, layers)
  question = Question(training=training, topology=topology, slices=slices)
  with stage(f"Compiling the step of {training.student.layers} layers for {topology}", 1, "programs") as bar:
    found = ask(question)
    bar.advance()
  return {"model": recipe.model} | report(question, found, price)
