"""A run folder: one writer, results that stand, files that appear whole."""

import subprocess
import sys

import pytest

from jaxchop.errors import JaxchopError
from jaxchop.files import read_json, write_json, write_text
from jaxchop.run_folder import RunFolder, standing


def test_a_result_stands_for_its_key_and_is_made_anew_for_another(tmp_path):
  made = []

  def make():
    made.append(1)
    return {"value": (1, 2)}

  first = standing(tmp_path / "r.json", {"steps": 3}, make)
  again = standing(tmp_path / "r.json", {"steps": 3}, make)
  assert first == again
  assert first["value"] == [1, 2]
  assert len(made) == 1
  standing(tmp_path / "r.json", {"steps": 4}, make)
  assert len(made) == 2


def test_a_second_process_is_refused_and_a_dead_one_is_not_in_the_way(tmp_path):
  script = (
    "import sys; from pathlib import Path; from jaxchop.run_folder import RunFolder\n"
    "with RunFolder(Path(sys.argv[1])).locked(): print('in', flush=True); sys.stdin.read()"
  )
  holder = subprocess.Popen(
    [sys.executable, "-c", script, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
  )
  with holder:
    assert holder.stdout.readline() == "in\n"
    with pytest.raises(JaxchopError, match=f"process {holder.pid} on"), RunFolder(tmp_path).locked():
      pass
    holder.kill()
  with RunFolder(tmp_path).locked():
    assert str(holder.pid) not in (tmp_path / ".lock").read_text()


def test_a_failed_write_leaves_the_old_file(tmp_path):
  write_json(tmp_path / "a.json", [1])
  with pytest.raises(JaxchopError, match="cannot be written"):
    write_text(tmp_path / "a.json" / "b", "text")
  assert read_json(tmp_path / "a.json") == [1]
  assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_reading_names_the_file_and_what_is_wrong(tmp_path):
  (tmp_path / "b.json").write_text("{")
  with pytest.raises(JaxchopError, match=r"b\.json: not a JSON file"):
    read_json(tmp_path / "b.json")
  with pytest.raises(JaxchopError, match=r"c\.json: cannot be read"):
    read_json(tmp_path / "c.json")
