"""The whole job on a tiny model: every file it promises, and stages that are not done twice."""

import dataclasses
import json
import logging
import re
from pathlib import Path

import pytest

from jaxchop.config import DataConfig, EvaluateConfig, MergingConfig, PruneConfig, Recipe, ScoreConfig
from jaxchop.errors import JaxchopError, UsageError
from jaxchop.job import Job
from jaxchop.pipeline import gap_closed, run
from jaxchop.recover.checkpoint import load_weights
from jaxchop.run_folder import RunFolder
from jaxchop.training import DistillConfig, MeshConfig, PartialConfig, RecoverConfig


@pytest.fixture(scope="module")
def recipe(tiny_folder, tmp_path_factory):
  return Recipe(
    out=str(tmp_path_factory.mktemp("runs") / "tiny"),
    model=str(tiny_folder()),
    data=DataConfig(source="builtin"),
    score=ScoreConfig(windows=2, window=32, batch_size=2),
    prune=PruneConfig(criterion="block_influence", count=1),
    recover=RecoverConfig(steps=3, batch_size=2, seq_len=32, checkpoint_every=2, mesh=MeshConfig(fsdp=1)),
    evaluate=EvaluateConfig(
      window=32,
      stride=32,
      max_windows=2,
      batch_size=2,
      prompt_tokens=8,
      new_tokens=2,
      sample_tokens=4,
      suite=("perplexity",),
    ),
  )


@pytest.fixture(scope="module")
def summary(recipe):
  return run(recipe)


def test_every_promised_file_is_there(recipe, summary):
  folder = RunFolder(Path(recipe.out))
  for path in (folder.recipe, folder.scores, folder.plan, folder.metrics, folder.evaluation, folder.summary):
    assert path.is_file(), path
  assert (folder.export / "config.json").is_file()
  assert folder.report.is_file()
  assert any((folder.path / "figures").glob("*.png"))


def test_the_summary_sets_the_three_models_side_by_side(summary):
  original, pruned, recovered = (summary[name] for name in ("original", "pruned", "recovered"))
  assert original["layers"] == pruned["layers"] + 1 == recovered["layers"] + 1
  assert original["parameters"] > pruned["parameters"] == recovered["parameters"]
  assert {entry["protocol"] for entry in (original, pruned, recovered)} == {original["protocol"]}
  assert all(entry["perplexity"] > 1 and entry["decode_tokens_per_second"] > 0 for entry in (original, pruned))
  assert summary["tokens"] == 3 * 2 * 32
  assert summary["check"]["ok"]


@pytest.mark.parametrize(
  "prune",
  [
    PruneConfig(merge="mka", count=1),
    pytest.param(PruneConfig(merge="streamline", criterion="cosine", count=1), marks=pytest.mark.slow),
    pytest.param(PruneConfig(criterion="perplexity", count=2, rounds=2), marks=pytest.mark.slow),
  ],
  ids=["merges", "replaces", "scores in rounds"],
)
def test_a_recipe_may_merge_replace_or_score_in_rounds_and_leave_out_recovery(recipe, tmp_path, prune):
  merging = MergingConfig(windows=4, window=32, batch_size=2)
  unrecovered = dataclasses.replace(recipe.recover, steps=0)
  job = dataclasses.replace(recipe, out=str(tmp_path / "run"), prune=prune, merging=merging, recover=unrecovered)
  found = run(job)
  assert found["check"]["ok"]
  assert (found["tokens"], found["gap_closed"]) == (0, None)
  assert ("search merges" in found["seconds"]) == (prune.merge == "mka")
  # But for what bfloat16 or the format costs, nothing came back: the export is the pruned model.
  assert found["recovered"]["perplexity"] == pytest.approx(found["pruned"]["perplexity"], rel=1e-2)
  assert found["pruned"]["layers"] == found["original"]["layers"] - (prune.count or 0)
  plan = json.loads((tmp_path / "run" / "plan.json").read_text())
  assert bool(plan["merges"]) == (prune.merge == "mka")
  assert bool(plan["repair"]) == (prune.merge == "streamline")
  assert len(list((tmp_path / "run" / "measured").glob("scores-of-*.json"))) == prune.rounds - 1


@pytest.mark.slow
def test_a_head_that_trains_alone_is_exported_untied_and_the_card_says_so(recipe, tiny_folder, tmp_path):
  training = dataclasses.replace(recipe.recover, trainable="partial", partial=PartialConfig(last=1))
  model = str(tiny_folder(tie_word_embeddings=True))
  found = run(dataclasses.replace(recipe, out=str(tmp_path / "run"), model=model, recover=training))
  assert found["check"]["ok"] and found["untied"]
  assert found["recovered"]["parameters"] == found["pruned"]["parameters"] + 320 * 16
  export = tmp_path / "run" / "export"
  assert json.loads((export / "config.json").read_text())["tie_word_embeddings"] is False
  assert "Its output head, the source's embedding, became a parameter of its own." in (export / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [MeshConfig(fsdp=1), MeshConfig(fsdp=2)], ids=["one device", "two"])
def test_the_unpruned_model_teaches_the_adapters_of_the_pruned_one(recipe, tmp_path, mesh):
  distill = DistillConfig(weight=0.5, hidden=0.5)
  training = dataclasses.replace(recipe.recover, trainable="lora", distill=distill, mesh=mesh)
  found = run(dataclasses.replace(recipe, out=str(tmp_path / "run"), recover=training))
  assert found["check"]["ok"]
  lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
  assert len(lines) == 3 and all(line["divergence"] > 0 and line["hidden_error"] > 0 for line in lines)


def test_where_nothing_is_pruned_a_teacher_must_be_named(recipe, tiny_folder, tmp_path):
  settings = dataclasses.replace(recipe.recover, distill=DistillConfig(weight=1.0))
  job = dataclasses.replace(recipe, out=str(tmp_path / "run"), prune=PruneConfig(keep="0:4"), recover=settings)
  with pytest.raises(UsageError, match=r"recover\.distill\.teacher: this recipe prunes nothing"):
    run(job)
  named = dataclasses.replace(settings, distill=DistillConfig(weight=1.0, teacher=str(tiny_folder(seed=1))))
  assert Job(dataclasses.replace(job, recover=named)).recovered().steps == 3


@pytest.mark.parametrize(
  ("prune", "names"),
  [
    (PruneConfig(merge="mka", count=1), r"layers\.[0-2]\."),
    pytest.param(PruneConfig(merge="streamline", drop="1:3"), r"layers\.1\.", marks=pytest.mark.slow),
    pytest.param(PruneConfig(merge="linear_map", drop="1:3"), r"layers\.0\.mlp\.down", marks=pytest.mark.slow),
  ],
  ids=["merged", "stands for others", "mapped"],
)
def test_layers_that_a_merge_made_may_train_alone(recipe, tmp_path, prune, names):
  training = dataclasses.replace(recipe.recover, trainable="replacement")
  merging = MergingConfig(windows=4, window=32, batch_size=2)
  out = tmp_path / "run"
  found = run(dataclasses.replace(recipe, out=str(out), prune=prune, merging=merging, recover=training))
  assert found["check"]["ok"] and not found["untied"]
  trained = load_weights(out / "checkpoints")[0]
  assert trained and all(re.match(names, name) for name in trained) and len({n.split(".")[1] for n in trained}) == 1


def test_replacement_needs_a_merge(recipe, tmp_path):
  training = dataclasses.replace(recipe.recover, trainable="replacement")
  with pytest.raises(UsageError, match=r"recover\.trainable: replacement trains what prune\.merge made"):
    run(dataclasses.replace(recipe, out=str(tmp_path / "run"), recover=training))


@pytest.mark.slow
def test_rounds_may_recover_in_between_and_score_what_came_of_it(recipe, tmp_path, caplog):
  prune = PruneConfig(criterion="block_influence", count=2, rounds=2, recover_between=2)
  job = dataclasses.replace(recipe, out=str(tmp_path / "run"), prune=prune)
  found = run(job)
  assert found["check"]["ok"]
  assert found["pruned"]["layers"] == 2
  # The pruned model is the once recovered one, cut again: not what its layers were in the whole model.
  plain = run(
    dataclasses.replace(job, out=str(tmp_path / "plain"), prune=dataclasses.replace(prune, recover_between=0))
  )
  assert found["pruned"]["perplexity"] != plain["pruned"]["perplexity"]
  before = sorted(path.stat().st_mtime_ns for path in (tmp_path / "run" / "measured").iterdir())
  with caplog.at_level(logging.INFO, logger="jaxchop"):
    caplog.clear()
    assert run(job)["recovered"]["perplexity"] == found["recovered"]["perplexity"]
  assert not [line for line in caplog.messages if "training step" in line or "Scoring" in line]
  assert sorted(path.stat().st_mtime_ns for path in (tmp_path / "run" / "measured").iterdir()) == before


@pytest.mark.slow
def test_layers_may_fade_out_before_they_are_cut(recipe, summary, tmp_path, caplog):
  prune = dataclasses.replace(recipe.prune, fade=3)
  job = dataclasses.replace(recipe, out=str(tmp_path / "run"), prune=prune)
  found = run(job)
  assert found["check"]["ok"] and found["pruned"]["layers"] == summary["pruned"]["layers"]
  # The model that is cut has been trained, and its training counts.
  assert found["pruned"]["perplexity"] != summary["pruned"]["perplexity"]
  assert found["tokens"] == summary["tokens"] + 3 * recipe.recover.batch_size * recipe.recover.seq_len
  with caplog.at_level(logging.INFO, logger="jaxchop"):
    caplog.clear()
    assert run(job)["recovered"] == found["recovered"]
  assert not [line for line in caplog.messages if "training step" in line]


@pytest.mark.parametrize(
  ("change", "words"),
  [
    ({"fade": 2, "pattern": None, "merge": "mka"}, r"prune\.fade is 2: .* goes with neither prune\.merge"),
    ({"fade": 2, "pattern": None, "count": None, "keep": "0:4"}, r"prune\.fade: no layer goes"),
  ],
)
def test_what_cannot_fade_is_refused(recipe, tmp_path, change, words):
  prune = dataclasses.replace(PruneConfig(pattern="tail", count=1), **change)
  with pytest.raises(UsageError, match=words):
    run(dataclasses.replace(recipe, out=str(tmp_path / "run"), prune=prune))


@pytest.mark.parametrize("change", [{"rounds": 1}, {"merge": "mka", "criterion": None}])
def test_recovering_between_rounds_needs_rounds_of_plain_removal(recipe, tmp_path, change):
  prune = dataclasses.replace(PruneConfig(criterion="block_influence", count=2, rounds=2, recover_between=2), **change)
  with pytest.raises(UsageError, match=r"prune\.recover_between"):
    run(dataclasses.replace(recipe, out=str(tmp_path / "run"), prune=prune))


def test_a_second_run_does_nothing_again(recipe, summary, caplog):
  files = sorted(RunFolder(Path(recipe.out)).measured.iterdir())
  before = [file.stat().st_mtime_ns for file in files]
  with caplog.at_level(logging.INFO, logger="jaxchop"):
    again = run(recipe)
  assert [file.stat().st_mtime_ns for file in files] == before
  assert again["recovered"] == summary["recovered"]
  assert not [record for record in caplog.messages if record.startswith(("Scoring", "Measuring"))]


def test_another_plan_measures_only_what_depends_on_it(recipe, summary):
  folder = RunFolder(Path(recipe.out))
  before = (folder.measured / "original.json").stat().st_mtime_ns
  with pytest.raises(JaxchopError):
    # The checkpoints in the folder belong to another keep-list: they are neither used nor thrown away.
    run(dataclasses.replace(recipe, prune=PruneConfig(pattern="tail", count=2)))
  assert (folder.measured / "original.json").stat().st_mtime_ns == before
  assert len(json.loads(folder.plan.read_text())["keep"]) == 2


def test_an_impossible_wish_is_refused_before_any_work(recipe, tmp_path):
  with pytest.raises(UsageError, match="prune"):
    run(dataclasses.replace(recipe, out=str(tmp_path / "x"), prune=PruneConfig(count=1)))
  assert not (tmp_path / "x" / "measured").exists()


def test_the_gap_closed_is_a_share_of_the_gap_in_log_perplexity():
  assert gap_closed(10, 40, 20) == pytest.approx(0.5)
  assert gap_closed(10, 40, 10) == pytest.approx(1)
  assert gap_closed(10, 9, 8) is None
