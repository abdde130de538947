"""A teacher that is asked once: the run is that of the teacher beside the model, and what it said is asked no more."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from jaxchop import retrain, teaching
from jaxchop.config import DataConfig, PruneConfig, Recipe
from jaxchop.data.likely import LikelyTokens
from jaxchop.errors import Interrupted, UsageError
from jaxchop.job import Job
from jaxchop.recover.curve import read_curve
from jaxchop.training import DistillConfig, MeshConfig, RecoverConfig

VOCABULARY = 320
CACHED = DistillConfig(weight=0.7, temperature=1.5, cache_top=VOCABULARY)
RECOVER = RecoverConfig(steps=5, batch_size=4, seq_len=32, mesh=MeshConfig(fsdp=1), distill=CACHED)


@pytest.fixture
def recipe(tiny_folder, tmp_path):
  model = str(tiny_folder())

  def made(name: str = "run", distill: DistillConfig = CACHED, **changes) -> Recipe:
    return Recipe(
      out=str(tmp_path / name),
      model=model,
      data=DataConfig(source="builtin"),
      prune=PruneConfig(drop="1"),
      recover=dataclasses.replace(RECOVER, distill=distill, **changes),
    )

  return made


def told(recipe: Recipe) -> list[tuple[float, float]]:
  Job(recipe).recovered()
  return [(line["loss"], line["divergence"]) for line in read_curve(Path(recipe.out) / "metrics.jsonl")]


@pytest.mark.parametrize(
  "changes",
  [
    {},
    pytest.param({"mesh": MeshConfig(fsdp=2, tensor=2), "accumulate": 2}, marks=pytest.mark.slow),
    pytest.param({"mesh": MeshConfig(context=2), "layout": "unrolled"}, marks=pytest.mark.slow),
  ],
  ids=str,
)
def test_with_every_token_kept_it_is_the_run_of_the_teacher_beside_the_model(recipe, changes):
  wanted = told(recipe("beside", dataclasses.replace(CACHED, cache_top=0)))
  np.testing.assert_allclose(told(recipe(**changes)), wanted, rtol=0, atol=2e-5)


@pytest.mark.slow
def test_of_few_tokens_less_divergence_is_seen_and_it_falls_too(recipe):
  alone = dataclasses.replace(CACHED, weight=1.0)
  few = told(recipe("few", dataclasses.replace(alone, cache_top=8), steps=20))
  every = told(recipe("every", alone, steps=20))
  assert all(0 < a[1] < b[1] for a, b in zip(few[:5], every[:5], strict=True))
  assert few[-1][1] < 0.9 * few[0][1]


@pytest.mark.slow
def test_documents_are_apart_for_the_teacher_too(recipe, tmp_path):
  """Of records with segments the teacher expects what it expects of each document alone."""
  rows = [{"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": q[::-1]}]} for q in QUESTIONS]
  path = tmp_path / "rows.jsonl"
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  source = DataConfig(source=f"chat:{path}", held_out="builtin", calibration="builtin")
  asked = dataclasses.replace(recipe(steps=2), data=source)
  wanted = dataclasses.replace(recipe("beside", dataclasses.replace(CACHED, cache_top=0), steps=2), data=source)
  np.testing.assert_allclose(told(asked), told(wanted), rtol=0, atol=2e-5)


QUESTIONS = ["a model", "some layers", "the list", "plain text", "training", "its depth", "slice", "measured"]


def test_it_is_asked_once_and_more_steps_ask_only_for_more_records(recipe, monkeypatch):
  Job(recipe()).recovered()
  loads, load = [], retrain.load_teacher
  monkeypatch.setattr(retrain, "load_teacher", lambda job: loads.append(job) or load(job))
  job = Job(recipe(steps=5, optimizer=dataclasses.replace(RECOVER.optimizer, learning_rate=1e-3)))
  settings = job.recipe.recover
  batches = retrain.batches_of(job, settings)
  assert not loads
  more = retrain.batches_of(job, dataclasses.replace(settings, steps=8))
  assert len(loads) == 1
  first, second = (set(b.records(steps)[0].tolist()) for b, steps in ((batches, 5), (more, 8)))
  assert first < second and not more.likely[0].missing(second) and batches.likely[0].missing(second)


def test_a_job_that_is_stopped_goes_on_with_the_records_that_are_left(recipe, monkeypatch):
  monkeypatch.setattr(teaching, "_A_FILE", 2)
  add, files = LikelyTokens.add, []

  def interrupted(store, records, *arrays):
    add(store, records, *arrays)
    files.append(records)
    if len(files) == 2:
      raise Interrupted("SIGINT")

  monkeypatch.setattr(LikelyTokens, "add", interrupted)
  with pytest.raises(Interrupted):
    Job(recipe()).recovered()
  Job(recipe()).recovered()
  # 20 records, by files of two batches of four.
  assert list(map(len, files)) == [8, 8, 4] and len({record for each in files for record in each}) == 20
  monkeypatch.undo()
  found = told(recipe())
  assert found == told(recipe("whole"))


def test_a_fork_reads_records_that_the_teacher_was_not_asked_about(recipe):
  with pytest.raises(UsageError, match=r"recover\.fork: it reads on behind the records that a teacher is asked about"):
    Job(recipe(fork="runs/x")).recovered()


@pytest.mark.parametrize("kept", [0, 8])
def test_a_teacher_of_more_tokens_is_refused_before_it_is_asked(recipe, tiny_folder, tmp_path, kept):
  other = tiny_folder(vocab_size=336)
  distill = DistillConfig(weight=1.0, cache_top=kept, teacher=str(other))
  with pytest.raises(UsageError, match=r"recover\.distill\.teacher: it has 336 tokens, the student 320"):
    Job(recipe(distill=distill)).recovered()
  assert not (tmp_path / "run" / "taught").exists()


def test_more_than_a_teacher_has_cannot_be_kept(recipe, tmp_path):
  distill = DistillConfig(weight=1.0, cache_top=321)
  with pytest.raises(UsageError, match="cache_top is 321, but the teacher has 320 tokens"):
    Job(recipe(distill=distill)).recovered()
  assert not (tmp_path / "run" / "taught").exists()
