"""How many layers a recipe leaves, and what it trains, without a weight in sight."""

import dataclasses
import json
from pathlib import Path

import pytest
import tiny_models

from jaxchop.config import PruneConfig, Recipe
from jaxchop.errors import UsageError
from jaxchop.hub.architectures import Shape, shape_of
from jaxchop.preflight.asked import training_of
from jaxchop.prune.merge import Merge
from jaxchop.prune.plan import Plan
from jaxchop.recipes import read_recipe
from jaxchop.training import DistillConfig, RecoverConfig

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture
def folder(tmp_path) -> str:
  """A folder with config.json alone."""
  (tmp_path / "config.json").write_text(json.dumps(tiny_models.CONFIG))
  return str(tmp_path)


def recipe(model: str, prune: PruneConfig, **recover) -> Recipe:
  return Recipe(out="runs/x", model=model, prune=prune, recover=RecoverConfig(**recover))


@pytest.mark.parametrize(
  ("prune", "kept"),
  [
    (PruneConfig(drop="1:3"), 2),
    (PruneConfig(keep="0,2,3"), 3),
    (PruneConfig(pattern="tail", count=1), 3),
    (PruneConfig(criterion="block_influence", ratio=0.5), 2),
    (PruneConfig(criterion="cosine", count=2, merge="streamline"), 2),
    (PruneConfig(merge="mka", count=3), 1),
  ],
)
def test_layers_are_counted_without_scores(folder, prune, kept):
  assert training_of(recipe(folder, prune)).student.layers == kept


@pytest.mark.parametrize("path", sorted((CONFIGS / "published").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_published_recipe_that_trains_has_a_shape(path):
  found = read_recipe([path])
  if found.recover.steps:
    training = training_of(found)
    assert 1 <= training.student.layers < shape_of(found.model).layers
    assert (training.teacher is not None) == (found.recover.distill.weight > 0)
    assert training.segments == found.data.source.startswith("alpaca:")
  else:
    with pytest.raises(UsageError, match=r"recover\.steps is 0: this recipe trains nothing"):
      training_of(found)


def test_what_depends_on_weights_is_asked_for(folder):
  with pytest.raises(UsageError, match=r"prune\.merge: by its threshold laco finds out .* say --layers"):
    training_of(recipe(folder, PruneConfig(merge="laco")))
  with pytest.raises(UsageError, match=r"prune\.latency: the model is not measured here"):
    training_of(recipe(folder, PruneConfig(pattern="tail", latency=0.5)))
  with pytest.raises(UsageError, match=r"only 1 are not protected"):
    training_of(recipe(folder, PruneConfig(pattern="tail", count=2, protect_first=3)))
  assert training_of(recipe(folder, PruneConfig(merge="laco")), kept=3).student.layers == 3
  with pytest.raises(UsageError, match=r"--layers is 5; .* has 4"):
    training_of(recipe(folder, PruneConfig(merge="laco")), kept=5)


def test_a_plan_says_which_layers_a_merge_made(folder):
  asked = recipe(folder, PruneConfig(merge="slm", count=1), trainable="replacement")
  with pytest.raises(UsageError, match=r"recover\.trainable: which layers a merge replaces .* give --plan"):
    training_of(asked)
  merge = Merge(into=1, layers=(2,), mode="telescope")
  plan = Plan(source={"name": "x"}, layers=4, keep=(0, 1, 3), criterion="slm", definition="", merges=(merge,))
  assert training_of(asked, plan).config.partial.layers == "1"
  with pytest.raises(UsageError, match=r"--plan: made for a model of 5 layers, .* has 4"):
    training_of(asked, dataclasses.replace(plan, layers=5))


def test_a_teacher_stands_beside_only_where_one_runs_in_every_step(folder):
  prune = PruneConfig(pattern="tail", count=1)
  assert training_of(recipe(folder, prune, distill=DistillConfig(weight=0.5))).teacher == shape_of(folder)
  named = DistillConfig(weight=0.5, teacher="meta-llama/Llama-3.2-1B")
  assert training_of(recipe(folder, prune, distill=named)).teacher == shape_of("meta-llama/Llama-3.2-1B")
  assert training_of(recipe(folder, prune, distill=DistillConfig(weight=0.5, cache_top=8))).teacher is None
  assert isinstance(training_of(recipe(folder, prune)).student, Shape)
