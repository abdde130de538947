"""Numbers that a setting cannot be are refused where settings are made, by the recipe's name of the setting."""

import dataclasses
import math

import pytest

from jaxchop import config, training
from jaxchop.config import (
  BuildConfig,
  DataConfig,
  EvaluateConfig,
  MergingConfig,
  OwnConfig,
  PruneConfig,
  Recipe,
  ScoreConfig,
)
from jaxchop.errors import UsageError
from jaxchop.recipes import read_recipe
from jaxchop.training import (
  AdapterConfig,
  GroupConfig,
  MeshConfig,
  OptimizerConfig,
  PartialConfig,
  RecoverConfig,
)

# Those that are refused further on, beside what else they have to fit.
ELSEWHERE = {
  BuildConfig: {"seq_len", "workers"},
  EvaluateConfig: {"window", "stride", "max_windows"},
  MergingConfig: {"threshold", "layers_per_merge", "lowest", "highest", "seed"},
  MeshConfig: {"data", "fsdp", "context", "tensor"},
  OptimizerConfig: {"decay_share"},
  OwnConfig: {"temperature", "top_p"},
  PartialConfig: {"last"},
  PruneConfig: {"rounds"},
}
# Any number is a setting.
FREE = {
  AdapterConfig: {"alpha"},
  DataConfig: {"seed"},
  MergingConfig: {"beta"},
  OwnConfig: {"seed"},
}


def groups():
  """Returns every dataclass of settings but the recipe, which holds them all."""
  named = vars(config) | vars(training)
  return [each for each in named.values() if dataclasses.is_dataclass(each) and each is not Recipe]


def numbers(group):
  """Returns the names of a group's settings that are numbers."""
  kinds = int, float, int | None, float | None
  return {field.name for field in dataclasses.fields(group) if field.type in kinds}


def made(group, **changes):
  return group(**({"match": ".*"} if group is GroupConfig else {}), **changes)


CASES = [
  (group, name)
  for group in groups()
  for name in sorted(numbers(group) - ELSEWHERE.get(group, set()) - FREE.get(group, set()))
]


@pytest.mark.parametrize(("group", "name"), CASES, ids=lambda part: getattr(part, "__name__", str(part)))
@pytest.mark.parametrize("value", [-1, math.nan])
def test_no_setting_is_below_its_range(group, name, value):
  with pytest.raises(
    UsageError, match=rf"^(data|score|prune|merging|recover|evaluate|export)\S*\.{name} is {value}; it is "
  ):
    made(group, **{name: value})


@pytest.mark.parametrize(
  ("group", "name"),
  [
    (AdapterConfig, "rank"),
    (EvaluateConfig, "batch_size"),
    (OptimizerConfig, "clip_norm"),
    (RecoverConfig, "accumulate"),
    (RecoverConfig, "batch_size"),
    (RecoverConfig, "checkpoint_every"),
    (RecoverConfig, "keep_checkpoints"),
    (RecoverConfig, "loss_chunk"),
    (ScoreConfig, "windows"),
  ],
)
def test_what_counts_something_is_not_none_at_all(group, name):
  with pytest.raises(UsageError, match=rf"\.{name} is 0; it is "):
    group(**{name: 0})


@pytest.mark.parametrize(
  ("group", "name"),
  [(AdapterConfig, "dropout"), (DataConfig, "held_out_share"), (OptimizerConfig, "beta1"), (OptimizerConfig, "beta2")],
)
def test_a_share_that_leaves_nothing_is_refused(group, name):
  with pytest.raises(UsageError, match=rf"\.{name} is 1\.0; it is at least 0 and below 1"):
    group(**{name: 1.0})


def test_gradients_need_not_be_clipped():
  assert OptimizerConfig(clip_norm=math.inf).clip_norm == math.inf


def test_a_recipe_with_such_a_number_is_refused(tmp_path):
  path = tmp_path / "recipe.yaml"
  path.write_text("out: x\nrecover: {optimizer: {learning_rate: -0.1}}\n")
  with pytest.raises(UsageError, match=r"recipe\.yaml: recover\.optimizer\.learning_rate is -0\.1; it is at least 0"):
    read_recipe([path])
  assert Recipe(out="x").recover.accumulate == 1
