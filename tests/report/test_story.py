"""The lede says in words what the numbers mean, a fall of what the model writes above all."""

import dataclasses

import pytest

from jaxchop.report import limits, story
from jaxchop.report.results import Measured, Plan, Run

PLAN = Plan(
  source="builtin",
  revision="",
  layers=4,
  keep=(0, 1, 3),
  drop=(2,),
  criterion="",
  definition="",
  words="removes layer 2",
)


def told(original: float | None, small: float | None) -> str:
  models = Measured(name="original", capability=original), Measured(name="pruned", capability=small)
  return story.lede(Run(name="x", plan=PLAN, models=models))


@pytest.mark.parametrize(
  ("original", "small", "words"),
  [
    (0.46, 0.2, "A cliff: it solves 20\u00a0% of the small generated tasks, the original 46\u00a0%, so what it writes"),
    (0.46, 0.4, " It solves 40\u00a0% of the small generated tasks, the original 46\u00a0%."),
    (0.05, 0.0, "the original 5\u00a0%: too few to show a loss."),
  ],
)
def test_a_cliff_is_said(original, small, words):
  assert words in told(original, small)


def test_what_was_not_probed_is_not_spoken_of():
  assert "tasks" not in told(None, None) + told(0.4, None)
  run = Run(name="x", plan=PLAN)
  assert "probing capability" in story.not_run(run)
  assert limits.OWN_TASK in story.honesty(run)
  probed = dataclasses.replace(run, models=(Measured(name="original", capability=0.4),))
  assert limits.OWN_TASK not in story.honesty(probed)


def test_the_model_furthest_on_its_way_is_what_it_is_about():
  models = (
    Measured(name=name, capability=share) for name, share in (("original", 0.5), ("pruned", 0.1), ("recovered", 0.4))
  )
  assert "It solves 40" in story.lede(Run(name="x", plan=PLAN, models=tuple(models)))
