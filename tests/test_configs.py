"""Every recipe in configs/ is one that the command line takes, and chooses what its method chooses."""

import dataclasses
import functools
from pathlib import Path

import pytest

from jaxchop.arguments import parser
from jaxchop.config import PruneConfig
from jaxchop.errors import UsageError
from jaxchop.prune.select import targets
from jaxchop.prune.select import unprotected as candidates
from jaxchop.recipes import read_recipe

CONFIGS = Path(__file__).parent.parent / "configs"
# Parts of recipes, laid over one another by `compare`.
COMPARED = CONFIGS / "compare"
WHOLE = sorted(path for path in CONFIGS.rglob("*.yaml") if COMPARED not in path.parents)
PUBLISHED = sorted(path.stem for path in (CONFIGS / "published").glob("*.yaml"))


ROOT = parser()


@functools.cache
def recipe(path):
  return ROOT.instantiate(ROOT.parse_args(["run", "--config", str(path)])).run


@pytest.mark.parametrize("path", WHOLE, ids=lambda path: str(path.relative_to(CONFIGS)))
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
  assert small.model == small.data.source.rpartition(":")[2] == "builtin"
  assert "/" in original.model
  for setting in ("pattern", "criterion", "merge", "protect_first", "protect_last"):
    assert getattr(small.prune, setting) == getattr(original.prune, setting)
  for setting in ("trainable", "partial", "adapter", "distill"):
    assert getattr(small.recover, setting) == getattr(original.recover, setting)
  assert (small.recover.steps > 0) == (original.recover.steps > 0)


def test_no_two_recipes_write_to_the_same_folder():
  outs = [recipe(path).out for path in WHOLE]
  assert len(set(outs)) == len(outs)


@pytest.mark.parametrize("cut", sorted(COMPARED.glob("drop-*.yaml")), ids=lambda path: path.stem)
def test_the_ways_that_are_compared_share_all_but_recovery(cut):
  files = sorted((COMPARED / "ways").glob("*.yaml"))
  found = {file.stem: read_recipe([COMPARED / "base.yaml", cut, file], "runs/x") for file in files}
  first = found["all"]
  assert first.prune.count == int(cut.stem.removeprefix("drop-")) and next(iter(found)) == "all"
  for name, way in found.items():
    data = dataclasses.replace(way.data, source=way.data.source.removeprefix("self:"), own=first.data.own)
    assert (data, way.evaluate, way.recover.batch_size) == (first.data, first.evaluate, first.recover.batch_size)
    assert way.prune == (PruneConfig(keep="0:30") if name == "unpruned" else first.prune)


@pytest.mark.parametrize("cut", sorted(COMPARED.glob("drop-*.yaml")), ids=lambda path: path.stem)
def test_rates_are_searched_on_other_documents_than_the_comparison_measures(cut):
  below = [COMPARED / "base.yaml", cut]
  measured = read_recipe([*below, COMPARED / "ways/all.yaml"], "runs/x").data.seed
  for file in sorted((COMPARED / "rates").glob("*.yaml")):
    way = read_recipe([*below, COMPARED / "search.yaml", file], "runs/x")
    kind, _, rate = file.stem.partition("-")
    like = read_recipe([*below, COMPARED / f"ways/{kind}.yaml"], "runs/x").recover
    optimizer = dataclasses.replace(like.optimizer, learning_rate=float(rate))
    assert way.recover == dataclasses.replace(like, optimizer=optimizer) and way.data.seed != measured


def test_a_recipe_of_several_files_is_that_of_the_last_word(tmp_path):
  below, above = tmp_path / "below.yaml", tmp_path / "above.yaml"
  below.write_text("out: here\nrecover:\n  steps: 7\n  batch_size: 3\n")
  above.write_text("recover:\n  steps: 9\n")
  found = read_recipe([below, above], "there")
  assert (found.out, found.recover.steps, found.recover.batch_size) == ("there", 9, 3)
  above.write_text("recover:\n  stepz: 9\n")
  with pytest.raises(UsageError, match=r"below\.yaml, .*above\.yaml: .*stepz"):
    read_recipe([below, above], "there")
  with pytest.raises(UsageError, match=r"absent\.yaml: no such file; name a recipe"):
    read_recipe([tmp_path / "absent.yaml"], "there")
