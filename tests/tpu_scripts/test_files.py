"""shellcheck is content with the scripts, and the files beside them say what SkyPilot and docker understand."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tpu_cloud import ROOT

from jaxchop.arguments import parser

FOLDER = ROOT / "tpu_scripts"
# Of the environment that the tests run in, also where that is not on PATH.
SHELLCHECK = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")


@pytest.mark.parametrize("folder", [FOLDER, ROOT / "tests" / "tpu_scripts" / "stand_ins"])
def test_shellcheck_has_nothing_to_say(folder):
  scripts = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.read_text().startswith("#!")]
  assert scripts and SHELLCHECK, "shellcheck is absent: pip install -e '.[test]'"
  result = subprocess.run([SHELLCHECK, *scripts], capture_output=True, text=True)
  assert result.returncode == 0, result.stdout + result.stderr


def test_scripts_can_be_called():
  for path in FOLDER.glob("*.sh"):
    called = path.name not in ("lib.sh", "worker.sh")
    assert not called or path.stat().st_mode & 0o111, path


def test_the_task_of_skypilot_says_what_its_documentation_knows():
  task = yaml.safe_load((FOLDER / "sky.yaml").read_text())
  assert task.keys() <= {"name", "workdir", "num_nodes", "resources", "envs", "secrets", "file_mounts", "setup", "run"}
  resources = task["resources"]
  assert resources.keys() <= {"infra", "accelerators", "accelerator_args", "use_spot", "disk_size", "job_recovery"}
  assert resources["infra"] == "gcp" and re.fullmatch(r"tpu-v[\w]+-\d+", resources["accelerators"])
  assert resources["accelerator_args"].keys() == {"runtime_version"} and resources["use_spot"] is True
  assert resources["job_recovery"] == {"recover_on_exit_codes": [75]}
  # Whoever launches it has to name them.
  assert task["envs"] == {"BUCKET": None, "RUN": None}
  for script in ("setup", "run"):
    subprocess.run(["bash", "-n", "-c", task[script]], check=True)
  recipe = re.search(r"jaxchop run (\S+)", task["run"])
  assert recipe and (ROOT / recipe[1]).exists()


@pytest.mark.parametrize("path", ["docs/tpu.md", "tpu_scripts/sky.yaml"])
def test_what_is_shown_is_what_jaxchop_takes(path, monkeypatch):
  monkeypatch.chdir(ROOT)
  lines = (ROOT / path).read_text().replace("\\\n", " ").splitlines()
  shown = [line for line in lines if re.search(r"(\.sh|/jaxchop) (--\w+ )?run configs/", line)]
  assert shown
  for line in shown:
    recipe, *options = shlex.split(line[line.index("configs/") :], comments=True)
    options = [word for word in options if word != "--out" and "$RUN" not in word]
    recover = parser().parse_args(["run", "--config", recipe, *options]).run.recover
    # The chips of the type that settings.example and sky.yaml name.
    assert recover.steps and recover.batch_size // recover.accumulate % 16 == 0


def test_the_container_copies_what_there_is():
  copied = re.findall(r"^COPY (.*) \S+$", (FOLDER / "Dockerfile").read_text(), re.MULTILINE)
  names = " ".join(copied).split()
  assert {"pyproject.toml", "jaxchop"} <= set(names)
  for name in names:
    assert (ROOT / name).exists()
  python = re.search(r"^FROM python:(\d+)\.(\d+)", (FOLDER / "Dockerfile").read_text(), re.MULTILINE)
  assert python and (int(python[1]), int(python[2])) >= (3, 11)
