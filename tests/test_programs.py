"""Compiled programs outlast a command, where its user has not said otherwise."""

import os
import subprocess
import sys

import pytest

from jaxchop.programs import keep_programs

ASKED = "perplexity", "--window", "32", "--stride", "32", "--max_windows", "2", "--data.held_out_share", "0.001"


@pytest.mark.slow
def test_a_command_leaves_its_programs_in_the_cache_folder(tiny_folder, tmp_path):
  environment = {name: value for name, value in os.environ.items() if not name.startswith("JAX_COMPILATION_CACHE")}
  environment |= {"JAXCHOP_CACHE": str(tmp_path), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
  script = "import sys; from jaxchop.cli import main; sys.exit(main())"
  command = [sys.executable, "-c", script, "evaluate", str(tiny_folder()), "--suite", *ASKED, "--quiet"]
  subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
  assert any("window_nll" in path.name for path in (tmp_path / "programs").iterdir())


def test_what_the_user_says_stands(monkeypatch, tmp_path):
  monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "elsewhere")
  monkeypatch.setenv("JAX_COMPILATION_CACHE_MAX_SIZE", "7")
  keep_programs()
  assert (os.environ["JAX_COMPILATION_CACHE_DIR"], os.environ["JAX_COMPILATION_CACHE_MAX_SIZE"]) == ("elsewhere", "7")
  monkeypatch.setenv("JAXCHOP_CACHE", str(tmp_path))
  monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
  keep_programs()
  assert os.environ["JAX_COMPILATION_CACHE_DIR"] == str(tmp_path / "programs")
