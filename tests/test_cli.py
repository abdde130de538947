"""The command line: help that answers at once, wrong usage in one line with the nearest name, stable exit codes."""

import json
import signal
import subprocess
import sys

import pytest

from jaxchop.arguments import parser
from jaxchop.cli import main
from jaxchop.config import Recipe

COMMANDS = ("run", "inspect", "score", "prune", "recover", "evaluate", "export", "check", "report", "data build")
COMMANDS += ("compare", "forecast", "preflight", "data inspect", "speed", "generate")


def refused(capsys, *argv):
  """Returns the one line of a wrong usage."""
  with pytest.raises(SystemExit) as caught:
    main(argv)
  said = capsys.readouterr()
  assert caught.value.code == 2
  assert said.out == ""
  assert said.err.count("\n") == 1
  return said.err


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_every_option(command, capsys):
  with pytest.raises(SystemExit) as caught:
    main([*command.split(), "--help"])
  assert caught.value.code == 0
  help_text = capsys.readouterr().out
  assert "--json" in help_text


def test_help_needs_no_jax():
  script = "import sys; from jaxchop.arguments import parser; parser().format_help(); assert 'jax' not in sys.modules"
  subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.parametrize(
  ("argv", "said"),
  [
    (["run", "--out", "x", "--recover.stepz", "3"], "did you mean recover.steps?"),
    (["prune", "m", "--patern", "tail"], "did you mean pattern?"),
    (["prne"], "did you mean prune?"),
    (["data", "biuld"], "did you mean build?"),
    (["data", "build", "x", "-o", "y", "--seqlen", "3"], "did you mean seq_len?"),
    (["run", "--out", "x", "--recover.steps", "many"], "recover.steps"),
    (["run", "--out", "x", "--recover.layout", "stacked"], "recover.layout"),
    (["run", "absent.yaml"], "absent.yaml"),
    (["run"], "out"),
    (["prune"], "model"),
    (["score", "m", "-o", "x", "--criteria", "[luck]"], "criteria"),
    (["compare", "r.yaml", "-o", "x", "--tokens", "-1"], '"tokens"'),
    (["compare", "r.yaml", "-o", "x", "--seeds", "0"], '"seeds"'),
    (["forecast", "r.yaml", "--tokens", "9", "-5"], '"tokens" element 2'),
    (["forecast", "r.yaml", "--target", "0"], '"target"'),
    (["forecast", "r.yaml", "--gain", "nan"], '"gain"'),
    (["forecast", "r.yaml", "--chip_tflops", "-1"], '"chip_tflops"'),
    (["preflight", "--out", "x", "--topology", "v5e:4x4", "--slices", "0"], '"slices"'),
    (["preflight", "--out", "x", "--topology", "v5e:4x4", "--layers", "0"], '"layers"'),
    (["preflight", "--out", "x", "--topology", "v5e:4x4", "--price", "-1"], '"price"'),
  ],
)
def test_wrong_usage_is_one_line_that_names_the_setting(argv, said, capsys):
  assert said in refused(capsys, *argv)


@pytest.mark.parametrize(
  ("argv", "said"),
  [
    (["run", "--out", "x", "--recover.accumulate", "0"], "recover.accumulate is 0; it is at least 1"),
    (["recover", "m", "-o", "x", "--optimizer.clip_norm", "0"], "recover.optimizer.clip_norm is 0.0; it is above 0"),
  ],
)
def test_a_number_that_a_setting_cannot_be_is_one_line_too(argv, said, capsys):
  assert main(argv) == 2
  assert capsys.readouterr().err == f"jaxchop {argv[0]}: error: {said}\n"


def test_a_misspelt_key_in_a_recipe_is_refused_with_the_nearest_name(tmp_path, capsys):
  recipe = tmp_path / "recipe.yaml"
  recipe.write_text("out: x\nprune: {cuont: 6}\n")
  assert "did you mean prune.count?" in refused(capsys, "run", str(recipe))


def test_a_recipe_without_settings_is_refused(tmp_path, capsys):
  (tmp_path / "recipe.yaml").write_text("# nothing yet\n")
  assert refused(capsys, "run", str(tmp_path / "recipe.yaml")).endswith("this one has none\n")


def test_later_recipes_and_options_win_and_numbers_are_numbers(tmp_path):
  (tmp_path / "a.yaml").write_text("out: x\nprune: {count: 6}\nrecover: {optimizer: {learning_rate: 3e-4}}\n")
  (tmp_path / "b.yaml").write_text("prune: {count: 4}\n")
  root = parser()
  argv = ["run", "--config", str(tmp_path / "a.yaml"), "--config", str(tmp_path / "b.yaml"), "--recover.steps", "5"]
  settings = root.instantiate(root.parse_args(argv)).run
  recipe = Recipe(**{name: settings[name] for name in Recipe.__dataclass_fields__})
  assert (recipe.out, recipe.prune.count, recipe.recover.steps) == ("x", 4, 5)
  assert recipe.recover.optimizer.learning_rate == 3e-4


def test_a_failure_is_one_line_and_exit_code_one_or_two(tmp_path, capsys):
  (tmp_path / "config.json").write_text("{}")
  code = main(["inspect", str(tmp_path)])
  said = capsys.readouterr()
  assert code == 1
  assert said.out == ""
  assert said.err.startswith("jaxchop inspect: error: ")
  assert said.err.count("\n") == 1
  assert main(["inspect", str(tmp_path / "absent")]) == 2


def test_json_prints_one_object_and_nothing_else(tiny_folder, capsys):
  assert main(["inspect", str(tiny_folder()), "--json"]) == 0
  assert json.loads(capsys.readouterr().out)["layers"] > 0


@pytest.mark.parametrize(
  ("number", "code", "said"),
  [
    (signal.SIGTERM, 75, "stopped by SIGTERM"),
    pytest.param(signal.SIGINT, 130, "interrupted", marks=pytest.mark.slow),
  ],
  ids=["SIGTERM", "SIGINT"],
)
def test_a_signal_is_one_line_that_says_how_to_go_on(tiny_folder, tmp_path, number, code, said):
  # A shell that runs the tests in the background lets them ignore SIGINT.
  program = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
  program += "from jaxchop.cli import main; sys.exit(main(sys.argv[1:]))"
  command = [sys.executable, "-c", program, "score", str(tiny_folder()), "-o", "scores.json"]
  with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
    for line in process.stderr:
      if "Scoring" in line:
        process.send_signal(number)
        break
    _, told = process.communicate()
  assert process.returncode == code
  last = told.splitlines()[-1]
  assert last.startswith("jaxchop score: ") and said in last and "run the same command again" in last
  assert "Traceback" not in told
