"""Several ways back from one pruned model: same plan, same text, same windows, budgets that are equal."""

import dataclasses
import json
from pathlib import Path

import pytest

from jaxchop.compare import compare
from jaxchop.config import DataConfig, EvaluateConfig, OwnConfig, PruneConfig, Recipe
from jaxchop.errors import Interrupted, UsageError
from jaxchop.job import Job
from jaxchop.training import DistillConfig, MeshConfig, PartialConfig, RecoverConfig
from jaxchop.trials import Trials

RECOVER = RecoverConfig(steps=4, batch_size=2, seq_len=32, mesh=MeshConfig(fsdp=1))
TOKENS = 4 * 2 * 32
OWN = OwnConfig(prompt_tokens=8, new_tokens=8, documents=16, batch_size=8)


@pytest.fixture(scope="module")
def ways(tiny_folder):
  everything = Recipe(
    out="unused",
    model=str(tiny_folder()),
    data=DataConfig(source="builtin"),
    prune=PruneConfig(pattern="tail", count=1),
    recover=RECOVER,
    evaluate=EvaluateConfig(window=32, stride=32, max_windows=6, batch_size=2, suite=("perplexity",)),
  )
  last = dataclasses.replace(RECOVER, trainable="partial", partial=PartialConfig(last=1))
  taught = dataclasses.replace(RECOVER, distill=DistillConfig(weight=1.0))
  return {
    "all": everything,
    "last": dataclasses.replace(everything, recover=last),
    "taught": dataclasses.replace(everything, recover=taught),
    "unpruned": dataclasses.replace(everything, prune=PruneConfig(keep="0:4")),
  }


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
  return tmp_path_factory.mktemp("compare") / "ways"


@pytest.fixture(scope="module")
def found(ways, stopped):
  """The comparison, which was interrupted in its fourth run and went on."""
  recovered, calls = Job.recovered, []

  def interrupted(job):
    calls.append(job)
    if len(calls) == 4:
      raise Interrupted("SIGINT")
    return recovered(job)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(Job, "recovered", interrupted)
    with pytest.raises(Interrupted):
      compare(ways, stopped)
    partly = json.loads((stopped / "compare.json").read_text())
    assert [run["way"] for run in partly["runs"]] == ["all", "last", "taught"] and partly["left"] == 5
    found = compare(ways, stopped)
  # Those of the first call stand; where both budgets come to as many steps, one run serves both.
  folders = [job.recipe.out for job in calls]
  assert len(folders) == len(set(folders)) + 1
  return found


def runs_of(found, budget, way):
  return [run for run in found["runs"] if (run["budget"], run["way"]) == (budget, way)]


def test_every_way_runs_once_a_budget(found, ways):
  assert found["left"] == 0 and len(found["runs"]) == 8
  for way in ways:
    for budget in ("tokens", "flops"):
      assert [run["seed"] for run in runs_of(found, budget, way)] == [0]


def test_tokens_are_equal_or_flops_are(found, ways):
  whole = runs_of(found, "tokens", "all")[0]
  for way in ways:
    tokens, flops = (runs_of(found, budget, way)[0] for budget in ("tokens", "flops"))
    assert tokens["spent"]["tokens"] == TOKENS
    # To the nearest step.
    assert flops["flops"] == pytest.approx(whole["flops"], abs=flops["flops"] / flops["spent"]["steps"] / 2 + 1)
  assert (
    runs_of(found, "flops", "last")[0]["spent"]["steps"] > 4 > runs_of(found, "flops", "taught")[0]["spent"]["steps"]
  )


def test_one_plan_serves_all_and_the_control_keeps_every_layer(found, stopped, ways):
  for path in (stopped / "runs").iterdir():
    plan = json.loads((path / "plan.json").read_text())
    assert plan["keep"] == ([0, 1, 2, 3] if path.name.startswith("unpruned") else [0, 1, 2])
  controls = [row["control"] for row in found["rows"]]
  assert controls == [False, False, False, True] * 2
  assert all(row["gap_closed"] is None for row in found["rows"] if row["control"])


def test_the_runs_are_those_of_their_recipes(found, stopped, ways, tmp_path):
  alone = dataclasses.replace(ways["last"], out=str(tmp_path / "alone"))
  again = Job(alone).recovered()
  folder = next((stopped / "runs").glob("last-4-steps-seed-0"))
  losses = [json.loads(line)["loss_hex"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
  assert losses[-1] == again.last_loss.hex()


def test_what_is_measured_stays_and_checkpoints_go(found, stopped):
  for path in (stopped / "runs").iterdir():
    assert (path / "result.json").is_file() and (path / "metrics.jsonl").is_file()
    assert not (path / "checkpoints").exists() and not (path / "frozen").exists()
  table = (stopped / "compare.md").read_text()
  assert "### At equal tokens" in table and "### At equal FLOPs" in table and table.count("| taught |") == 2
  assert (stopped / "compare.png").read_bytes().startswith(b"\x89PNG")
  assert json.loads((stopped / "compare.json").read_text()) == {k: v for k, v in found.items() if k != "folder"}


def test_what_stands_is_not_run_again(found, ways, stopped, monkeypatch):
  monkeypatch.setattr(Job, "recovered", None)
  again = compare(ways, stopped)
  assert again["rows"] == found["rows"]


@pytest.mark.slow
def test_a_way_may_train_on_the_unpruned_models_own_words(ways, tmp_path):
  own = dataclasses.replace(ways["all"], data=DataConfig(source="self:builtin", own=OWN))
  found = compare({"all": ways["all"], "own": own}, tmp_path / "own", budgets=("tokens",))
  assert {run["way"]: run["spent"]["tokens"] for run in found["runs"]} == {"all": TOKENS, "own": TOKENS}


def test_a_teacher_that_was_asked_once_costs_once(ways, tmp_path):
  """Its forward pass over each record is counted, however often the record is read; beside the model, each time."""
  kept = dataclasses.replace(RECOVER, distill=DistillConfig(weight=1.0, cache_top=8))
  chosen = {name: ways[name] for name in ("all", "taught")} | {"kept": dataclasses.replace(ways["all"], recover=kept)}
  trials = Trials(chosen, tmp_path / "trials")
  (corpus,) = trials.cut.corpora.values()
  epoch = corpus.records // 2
  assert trials.flops("kept", epoch) == pytest.approx(trials.flops("taught", epoch), rel=1e-12)
  more = [trials.flops(name, 3 * epoch) - trials.flops(name, 2 * epoch) for name in chosen]
  assert more[2] == pytest.approx(more[0], rel=1e-12) and more[1] > 1.2 * more[0]


def refused(ways, tmp_path, words, **changed):
  others = dict(ways) | {name: dataclasses.replace(ways["last"], **change) for name, change in changed.items()}
  with pytest.raises(UsageError, match=words):
    compare(others, tmp_path / "refused")
  assert not list((tmp_path / "refused").glob("runs/*/checkpoints"))


@pytest.mark.parametrize(
  ("change", "words"),
  [
    ({"prune": PruneConfig(pattern="tail", count=2)}, r"other: its prune is not that of all; share it by --base"),
    ({"data": DataConfig(source="builtin", seed=1)}, r"other: its data is not that of all"),
    ({"evaluate": EvaluateConfig()}, r"other: its evaluate is not that of all"),
    ({"recover": dataclasses.replace(RECOVER, seq_len=16)}, r"other: its recover\.seq_len is not that of all"),
    ({"recover": dataclasses.replace(RECOVER, steps=0)}, r"other: a way back is one recovery: set recover\.steps"),
    (
      {"recover": dataclasses.replace(RECOVER, trainable="partial", partial=PartialConfig(last=9))},
      r"recover\.partial\.last is 9; the model has 3 layers",
    ),
  ],
)
def test_what_cannot_be_compared_is_refused_before_the_first_run(ways, tmp_path, change, words, monkeypatch):
  monkeypatch.setattr(Trials, "before", None)
  refused(ways, tmp_path, words, other=change)


def test_the_first_way_prunes(ways, tmp_path):
  with pytest.raises(UsageError, match="unpruned: it prunes nothing, so nothing is to be recovered; let it prune"):
    compare({name: ways[name] for name in ("unpruned", "all")}, Path(tmp_path / "refused"))
