"""A teacher whose most likely tokens are kept: two processes ask it together, and learn what one would."""

import json
from pathlib import Path

import numpy as np
import pytest

from jaxchop.job import Job
from jaxchop.recipes import read_recipe
from jaxchop.recover.curve import read_curve

COMMAND = "import sys; from jaxchop.cli import main; sys.exit(main())"
RECIPE = """
out: {out}
model: {model}
prune: {{drop: '1'}}
recover:
  steps: 3
  batch_size: 4
  seq_len: 32
  distill: {{weight: 0.7, cache_top: 8}}
  mesh: {mesh}
evaluate: {{max_windows: 2}}
"""


def written(folder: Path, model: Path, mesh: str) -> Path:
  file = folder.with_suffix(".yaml")
  file.write_text(RECIPE.format(out=folder, model=model, mesh=mesh))
  return file


def told(folder: Path) -> list[tuple[float, float]]:
  return [(line["loss"], line["divergence"]) for line in read_curve(folder / "metrics.jsonl")]


@pytest.mark.slow
@pytest.mark.parametrize("mesh", ["{data: 2, fsdp: 2}", "{fsdp: 4}"])
def test_two_processes_ask_the_teacher_once_and_learn_what_one_learns(tiny_folder, tmp_path, launch, mesh):
  model, alone, both = tiny_folder(), tmp_path / "alone", tmp_path / "both"
  Job(read_recipe([written(alone, model, "{fsdp: 1}")])).recovered()
  recipe = written(both, model, mesh)
  processes = launch(2, "-c", COMMAND, "run", str(recipe), "--quiet", devices=2)
  words = [process.communicate(timeout=300)[1] for process in processes]
  assert [process.returncode for process in processes] == [0, 0], words
  np.testing.assert_allclose(told(both), told(alone), rtol=0, atol=1e-5)
  (index,) = both.rglob("likely.json")
  assert len(json.loads(index.read_text())["files"]) == 1
