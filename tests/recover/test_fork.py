"""A fork of a stable run is bitwise the run whose decay begins there; from anywhere else there is none."""

import dataclasses
import shutil
import signal
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from test_loop import curve
from tiny_run import Records, settings, tiny_model

from jaxchop.errors import Interrupted, UsageError
from jaxchop.recover.loop import recover
from jaxchop.recover.outcome import Recovered
from jaxchop.training import OptimizerConfig

WSD = OptimizerConfig(learning_rate=1e-2, warmup_steps=6, schedule="wsd", decay_share=0.25)


def run(
  folder: Path, *, data: str = "count", records: Records | None = None, share: float = 0.25, **changes: Any
) -> Recovered:
  given = {"keep_checkpoints": 9, "optimizer": dataclasses.replace(WSD, decay_share=share), **changes}
  return recover(tiny_model(1), records or Records(), settings(**given), folder, meta={"data": data})


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
  """20 steps: 6 of warm-up, stable until 15, then falling; a checkpoint after every fifth."""
  folder = tmp_path_factory.mktemp("parent")
  run(folder)
  return folder


def test_a_fork_is_bitwise_the_run_whose_decay_begins_there_restarted_or_not(parent, tmp_path):
  whole = run(tmp_path / "whole", steps=15, share=5 / 15)
  fork, changes = tmp_path / "fork", {"steps": 5, "fork": f"{parent}@10", "checkpoint_every": 2}
  with pytest.raises(Interrupted, match=r"after step 1[1-4] of 15"):
    run(fork, records=Records(signal.SIGINT, 12), **changes)
  done = run(fork, **changes)
  assert curve(fork) == curve(tmp_path / "whole")[10:]
  jax.tree.map(np.testing.assert_array_equal, done.model, whole.model)
  assert done.steps == 15 and done.tokens == whole.tokens


def test_unset_the_step_is_the_newest_stable_one_and_stays_it_without_the_parent(parent, tmp_path):
  copy, fork = tmp_path / "parent", tmp_path / "fork"
  shutil.copytree(parent, copy)
  with pytest.raises(Interrupted, match=r"after step 1[67] of 18"):
    run(fork, records=Records(signal.SIGINT, 15), steps=3, fork=str(copy))
  shutil.rmtree(copy)
  assert run(fork, steps=3, fork=str(copy)).steps == 18


@pytest.mark.parametrize(
  ("at", "changes", "said"),
  [
    ("@20", {}, r"step 20 of .* is in its decay; fork from its stable phase"),
    ("@5", {}, r"step 5 of .* is in its warm-up"),
    ("@7", {}, r"has no checkpoint of step 7; its checkpoints: 5, 10, 15, 20"),
    ("", {"seed": 1}, r"was trained with recover\.seed 0, not 1; set it back"),
    ("", {"data": "other"}, r"was trained with data count, not other"),
    ("", {"optimizer": dataclasses.replace(WSD, learning_rate=2.0)}, r"recover\.optimizer\.learning_rate 0\.01, not 2"),
    ("", {"optimizer": OptimizerConfig()}, r"only the schedule wsd has forks, not cosine"),
    ("/nowhere", {}, r"has no checkpoint in its stable phase; its checkpoints: none"),
  ],
)
def test_what_is_no_stable_phase_of_the_same_run_is_refused(parent, tmp_path, at, changes, said):
  with pytest.raises(UsageError, match=said):
    run(tmp_path / "fork", fork=f"{parent}{at}", steps=5, **changes)
  assert not (tmp_path / "fork").exists()


def test_a_fork_has_no_forks(parent, tmp_path):
  run(tmp_path / "fork", steps=2, fork=f"{parent}@10")
  with pytest.raises(UsageError, match=r"step 12 of .* is in its decay"):
    run(tmp_path / "second", steps=2, fork=f"{tmp_path / 'fork'}@12")
