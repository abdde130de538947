"""Tasks are found by name, groups of the papers hold what they say, and results come out as plain numbers."""

import datasets
import pytest
from lm_eval.api.task import ConfigurableTask

from jaxchop.errors import JaxchopError, UsageError
from jaxchop.evaluate import harness_tasks
from jaxchop.evaluate.harness import HarnessConfig
from jaxchop.evaluate.harness_tasks import Tasks, evaluate_tasks, tasks_of

SMALL = HarnessConfig(batch_size=8)


@pytest.fixture(scope="module")
def known():
  return tasks_of()


@pytest.fixture(autouse=True)
def only_local(monkeypatch, local_tasks):
  """lm-eval has fourteen thousand task files, which takes seconds to read; these tests want theirs alone."""
  local = Tasks(include_path=local_tasks, include_defaults=False)
  monkeypatch.setattr(harness_tasks, "tasks_of", lambda folder: local)


def test_results_are_metrics_with_errors_versions_and_counts(model, tokenizer):
  found = evaluate_tasks(model, tokenizer, ["local_choices", "local_sums"], SMALL, eos=[2], limit=6)
  assert found["lm_eval"] and set(found["tasks"]) == {"local_choices", "local_sums"} and not found["groups"]
  choices, sums = found["tasks"].values()
  assert set(choices["metrics"]) == {"acc", "acc_norm"} and set(sums["metrics"]) == {"exact_match"}
  assert choices["version"] == 1.0 and choices["n"] == 6 and choices["num_fewshot"] == 0
  assert sums["num_fewshot"] == 3
  for metric in choices["metrics"].values():
    assert 0 <= metric["value"] <= 1 and metric["error"] >= 0


def test_a_group_has_the_mean_of_the_metrics_that_it_names(model, tokenizer, local_tasks, tmp_path, monkeypatch):
  for file in local_tasks.glob("*.yaml"):
    (tmp_path / file.name).write_text(file.read_text())
  (tmp_path / "pair.yaml").write_text(
    "group: pair\ntask: [local_choices, local_letters]\nmetadata:\n  version: 1.0\n"
    "  averaged: {local_choices: acc_norm, local_letters: acc}\n"
  )
  monkeypatch.setattr(harness_tasks, "tasks_of", lambda folder: Tasks(include_path=tmp_path, include_defaults=False))
  found = evaluate_tasks(model, tokenizer, ["pair"], SMALL, num_fewshot=1)
  parts = [found["tasks"][task]["metrics"][metric] for task, metric in found["groups"]["pair"]["mean"]["of"].items()]
  mean = found["groups"]["pair"]["mean"]
  assert mean["value"] == pytest.approx((parts[0]["value"] + parts[1]["value"]) / 2)
  assert mean["error"] == pytest.approx((parts[0]["error"] ** 2 + parts[1]["error"] ** 2) ** 0.5 / 2)


def test_an_unknown_task_is_refused(model, tokenizer):
  with pytest.raises(UsageError, match="task nothing is unknown"):
    evaluate_tasks(model, tokenizer, ["nothing"])


def test_the_groups_of_the_papers_have_their_tasks_and_examples(known, monkeypatch):
  # What a data set holds is not asked for: no network.
  monkeypatch.setattr(ConfigurableTask, "__init__", lambda self, config: vars(self).update(_config=config))
  monkeypatch.setattr(ConfigurableTask, "task_name", property(lambda self: self._config["task"]), raising=False)
  seven = known.load(["zeroshot7"])["tasks"]
  assert set(seven) == {*["boolq", "piqa", "hellaswag", "winogrande", "arc_easy", "arc_challenge", "openbookqa"]}
  assert set(known.task_index["zeroshot7"].cfg["metadata"]["averaged"]) == set(seven)
  assert {task._config["num_fewshot"] for task in seven.values()} == {0}
  shots = {name: task._config["num_fewshot"] for name, task in known.load(["minitron"])["tasks"].items()}
  mmlu = {name: count for name, count in shots.items() if name.startswith("mmlu")}
  assert len(mmlu) == 57 and set(mmlu.values()) == {5}
  wanted = {"winogrande": 5, "arc_challenge": 25, "hellaswag": 10, "gsm8k": 5, "truthfulqa_mc2": 0}
  assert {name: count for name, count in shots.items() if name not in mmlu} == wanted
  # lm-eval's own are there beside ours.
  assert known.match_tasks(["mmlu", "cmmlu", "gsm8k"]) == ["cmmlu", "gsm8k", "mmlu"]


@pytest.mark.parametrize(
  "failure", [ConnectionError("Couldn't reach 'a/b' on the Hub"), datasets.exceptions.DatasetNotFoundError("no 'a/b'")]
)
def test_a_data_set_that_cannot_be_had_is_named_in_one_line(known, monkeypatch, failure):
  def fail(*_, **__):
    raise failure

  monkeypatch.setattr(datasets, "load_dataset", fail)
  with pytest.raises(JaxchopError, match=r"a/b.*HF_HOME") as refusal:
    known.load(["openbookqa"])
  assert "\n" not in str(refusal.value)
