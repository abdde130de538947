"""Every recipe in configs/ is one that the command line takes, and chooses what its method chooses."""

from pathlib import Path

import pytest

from jaxchop.cli import parser
from jaxchop.prune.select import targets
from jaxchop.prune.select import unprotected as candidates

CONFIGS = Path(__file__).parent.parent / "configs"
PUBLISHED = sorted(path.stem for path in (CONFIGS / "published").glob("*.yaml"))


def recipe(path):
  root = parser()
  return root.instantiate(root.parse_args(["run", "--config", str(path)])).run


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda path: str(path.relative_to(CONFIGS)))
def test_a_recipe_names_one_way_to_choose_and_where_to_stop(path):
  found = recipe(path)
  prune = found.prune
  itself = prune.merge in ("laco", "slm", "mka")
  choosers = [name for name in ("drop", "keep", "pattern", "criterion") if getattr(prune, name) is not None]
  assert len(choosers) == (0 if itself else 1)
  assert len(targets(prune)) == (1 if found.merging.threshold is None else 0)
  assert candidates(prune, 30)
  assert found.out.startswith("runs/")


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_published_method_has_its_variant_that_runs_here(name):
  small, original = (recipe(CONFIGS / folder / f"{name}.yaml") for folder in ("smollm2", "published"))
  assert small.model == small.data.source == "builtin"
  assert "/" in original.model
  for setting in ("pattern", "criterion", "merge", "protect_first", "protect_last"):
    assert getattr(small.prune, setting) == getattr(original.prune, setting)


def test_no_two_recipes_write_to_the_same_folder():
  outs = [recipe(path).out for path in CONFIGS.rglob("*.yaml")]
  assert len(set(outs)) == len(outs)
