"""staging: a folder appears whole or not at all, and nothing is deleted that jaxchop did not write."""

import errno
import json
from pathlib import Path

import pytest

from jaxchop.errors import JaxchopError, UsageError
from jaxchop.hub.staging import MANIFEST, check_target, named, staged, write_file


def entries(folder: Path) -> list[str]:
  return sorted(path.name for path in folder.iterdir())


def write(out: Path, text: str = "new", **settings) -> None:
  with staged(out, **settings) as folder:
    (folder / "model").write_text(text)
    (folder / MANIFEST).write_text(json.dumps({"files": ["model"]}))


def test_the_folder_appears_when_the_block_ends(tmp_path):
  with staged(tmp_path / "out") as folder:
    (folder / "model").write_text("half")
    assert not (tmp_path / "out").exists()
  assert entries(tmp_path) == ["out"]


@pytest.mark.parametrize("error", [JaxchopError("bad tensor"), KeyboardInterrupt()])
def test_an_error_leaves_nothing_behind(tmp_path, error):
  with pytest.raises(type(error)), staged(tmp_path / "out") as folder:
    (folder / "model").write_text("half")
    raise error
  assert entries(tmp_path) == []


def test_a_full_disk_is_one_line_that_names_the_file_and_keeps_the_old_folder(tmp_path):
  write(tmp_path / "out", "old")
  with (
    pytest.raises(JaxchopError, match=r"shard-1: No space left on device \(.* free there"),
    staged(tmp_path / "out", overwrite=True),
    named(Path("shard-1")),
  ):
    raise OSError(errno.ENOSPC, "No space left on device")
  assert (tmp_path / "out" / "model").read_text() == "old"
  assert entries(tmp_path) == ["out"]


def test_an_empty_folder_is_filled(tmp_path):
  (tmp_path / "out").mkdir()
  write(tmp_path / "out")
  assert entries(tmp_path / "out") == [MANIFEST, "model"]


def test_a_folder_that_is_not_empty_is_refused_before_anything_is_written(tmp_path):
  (tmp_path / "notes.txt").write_text("mine")
  with pytest.raises(UsageError, match=r"not empty.*--overwrite"), staged(tmp_path):
    raise AssertionError("the block ran")


def test_overwrite_replaces_only_what_jaxchop_wrote(tmp_path):
  write(tmp_path / "out", "old")
  write(tmp_path / "out", "new", overwrite=True)
  assert (tmp_path / "out" / "model").read_text() == "new"
  assert entries(tmp_path) == ["out"]


def test_overwrite_refuses_a_folder_without_jaxchop_json(tmp_path):
  (tmp_path / "thesis.tex").write_text("years of work")
  with pytest.raises(UsageError, match=f"not written by jaxchop.*{MANIFEST}"):
    write(tmp_path, overwrite=True)
  assert entries(tmp_path) == ["thesis.tex"]


@pytest.mark.parametrize("manifest", [None, "not json", "[]", '{"files": 3}'])
def test_overwrite_refuses_a_folder_with_a_file_of_someone_else(tmp_path, manifest):
  write(tmp_path / "out", "old")
  (tmp_path / "out" / "thesis.tex").write_text("years of work")
  if manifest is not None:
    (tmp_path / "out" / MANIFEST).write_text(manifest)
  with pytest.raises(UsageError, match="which jaxchop did not write"):
    write(tmp_path / "out", overwrite=True)
  assert (tmp_path / "out" / "thesis.tex").exists()


def test_a_file_is_no_target(tmp_path):
  (tmp_path / "out").write_text("mine")
  with pytest.raises(UsageError, match="is a file"):
    write(tmp_path / "out", overwrite=True)


@pytest.mark.parametrize("inside", ["", "weights", "weights/model.gguf"])
def test_the_source_is_never_overwritten(tmp_path, inside):
  write(tmp_path / "out", "source")
  with pytest.raises(UsageError, match="the source"):
    check_target(tmp_path / "out", overwrite=True, source=tmp_path / "out" / inside)


def test_what_a_killed_run_left_is_cleaned_up(tmp_path):
  aside = tmp_path / "out.tmp-jaxchop"
  (aside / "folder").mkdir(parents=True)
  (aside / "model-00001-of-00002.safetensors").write_text("half")
  write(tmp_path / "out")
  assert entries(tmp_path) == ["out"]
  assert entries(tmp_path / "out") == [MANIFEST, "model"]


def test_a_link_where_the_work_would_lie_is_not_followed(tmp_path):
  (tmp_path / "precious").mkdir()
  (tmp_path / "precious" / "thesis.tex").write_text("years of work")
  (tmp_path / "out.tmp-jaxchop").symlink_to(tmp_path / "precious")
  with pytest.raises(JaxchopError, match="not written"):
    write(tmp_path / "out")
  assert entries(tmp_path / "precious") == ["thesis.tex"]


def test_two_writers_of_one_folder_do_not_meet(tmp_path):
  with staged(tmp_path / "out") as folder:
    (folder / "model").write_text("first")
    with pytest.raises(JaxchopError, match="another process"):
      write(tmp_path / "out")
  assert (tmp_path / "out" / "model").read_text() == "first"


@pytest.mark.parametrize("renamed", [False, True])
def test_a_replacement_killed_between_its_renames_is_settled(tmp_path, renamed):
  write(tmp_path / "out", "old")
  (tmp_path / "out").rename(tmp_path / "out.old-jaxchop")
  if renamed:
    write(tmp_path / "other", "new")
    (tmp_path / "other").rename(tmp_path / "out")
  with pytest.raises(RuntimeError), staged(tmp_path / "out", overwrite=True):
    raise RuntimeError
  assert entries(tmp_path) == ["out"]
  assert (tmp_path / "out" / "model").read_text() == ("new" if renamed else "old")


def test_files_are_copied_byte_for_byte(tmp_path):
  raw = bytes(range(256)) * 5
  write_file(tmp_path / "a", raw)
  write_file(tmp_path / "b", tmp_path / "a")
  assert (tmp_path / "b").read_bytes() == raw
