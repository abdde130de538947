"""The wrapper command takes lm-eval's own flags, and knows our models and tasks."""

import functools
import json
import sys

import pytest

from jaxchop import lm_eval as command
from jaxchop.errors import UsageError
from jaxchop.evaluate.harness_tasks import Tasks
from jaxchop.lm_eval import NamedLM, known_to_lm_eval, main


@pytest.fixture
def run(monkeypatch):
  # Reading lm-eval's own fourteen thousand task files takes ten seconds.
  monkeypatch.setattr(command, "Tasks", functools.partial(Tasks, include_defaults=False))

  def run(*arguments):
    monkeypatch.setattr(sys, "argv", ["lm_eval", *map(str, arguments)])
    return main()

  return run


def test_a_folder_is_measured_with_lm_evals_flags(run, tiny_folder, local_tasks, tmp_path, capsys):
  arguments = ["--model", "jaxchop", "--model_args", f"pretrained={tiny_folder()},batch_size=8,answers={tmp_path}"]
  tasks = ["--tasks", "local_choices,local_sums", "--include_path", local_tasks, "--limit", 4]
  assert run(*arguments, *tasks, "--output_path", tmp_path / "out", "--log_samples", "--apply_chat_template") == 0
  table = capsys.readouterr().out
  assert "local_choices" in table and "exact_match" in table
  (file,) = (tmp_path / "out").rglob("results_*.json")
  assert json.loads(file.read_text())["results"]["local_choices"]["acc,none"] >= 0
  assert len((tmp_path / "answers.jsonl").read_text().splitlines()) >= 4


def test_our_groups_are_listed(run, capsys):
  assert run("ls", "groups") == 0
  listed = capsys.readouterr().out
  assert all(name in listed for name in ("zeroshot7", "minitron"))


def test_what_is_wrong_is_said_in_one_line(run, local_tasks, capsys):
  wrong = ["--model", "jaxchop", "--model_args", "pretrained=/nowhere", "--tasks", "local_sums"]
  assert run(*wrong, "--include_path", local_tasks) != 0
  last = capsys.readouterr().err.splitlines()[-1]
  assert last.startswith("error: ") and "/nowhere" in last


@pytest.mark.parametrize(
  "given, words",
  [
    ({"batch_size": 8}, "pretrained is missing"),
    ({"pretrained": "x", "device": "cpu"}, "device means nothing to jaxchop"),
    ({"pretrained": "x", "batch_size": "many"}, "batch_size is 'many'"),
  ],
)
def test_an_argument_that_means_nothing_is_refused(given, words):
  with pytest.raises(UsageError, match=words):
    NamedLM.create_from_arg_obj(given)


def test_flags_and_arguments_may_both_name_the_batch_size(tiny_folder):
  folder = tiny_folder()
  lm = NamedLM.create_from_arg_string(f"pretrained={folder},batch_size=3", {"batch_size": 1, "device": None})
  assert lm.config.batch_size == 3
  assert NamedLM.create_from_arg_obj({"pretrained": str(folder)}, {"batch_size": "auto"}).config.batch_size == 16


def test_other_models_of_lm_eval_stay_known():
  from lm_eval.api.registry import model_registry

  with known_to_lm_eval():
    assert model_registry.get("jaxchop") is NamedLM and "hf" in model_registry
