import json
import sys

import huggingface_hub
import pyarrow as pa
import pyarrow.parquet
import pytest

from jaxchop.data.sources import Document, digest, documents
from jaxchop.errors import JaxchopError, UsageError


def jsonl(path, *texts):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
  return path


def test_builtin_is_the_library_help_sorted_by_topic():
  found = list(documents("builtin"))
  names = [document.name for document in found]
  assert names == sorted(names) and "builtin:for" in names and len(found) > 70
  assert {document.source for document in found} == {"builtin"}
  assert sum(len(document.text) for document in found) > 400_000


def test_a_glob_reads_its_files_in_order_and_names_line_and_file(tmp_path):
  jsonl(tmp_path / "deep" / "b.jsonl", "three")
  jsonl(tmp_path / "a.jsonl", "one", "two")
  (tmp_path / "c.csv").write_text("no text")
  found = list(documents(f"{tmp_path}/**/*.jsonl"))
  assert [document.text for document in found] == ["one", "two", "three"]
  assert [document.name for document in found] == [
    f"{tmp_path}/a.jsonl:1",
    f"{tmp_path}/a.jsonl:2",
    f"{tmp_path}/deep/b.jsonl:1",
  ]
  assert found[1].source == f"{tmp_path}/a.jsonl"


def test_a_file_with_brackets_in_its_name_is_a_file(tmp_path):
  assert [d.text for d in documents(str(jsonl(tmp_path / "a[1].jsonl", "one")))] == ["one"]


def test_bad_specs_are_refused_at_once(tmp_path):
  jsonl(tmp_path / "train.jsonl", "a")
  (tmp_path / "table.csv").write_text("a")
  for spec, message in {
    f"{tmp_path}/trian.jsonl": rf"no such file; the nearest is {tmp_path}/train\.jsonl",
    "bultin": "no such file; the nearest is builtin",
    f"{tmp_path}/none/a.txt": rf"there is no folder {tmp_path}/none",
    f"{tmp_path}/*.txt": "no file matches",
    f"{tmp_path}": r"a folder; name its files, as .*\*\.jsonl",
    f"{tmp_path}/table.csv": r"table\.csv: a file of text ends in",
    f"{tmp_path}/*": r"table\.csv: a file of text ends in",
    "s3://bucket/a.txt": "unknown scheme s3://",
    "tfds://": "expected tfds://name",
    "tfds://name?splt=train": "expected tfds://name",
    "hf://name": "expected hf://org/name",
  }.items():
    with pytest.raises(UsageError, match=message) as caught:
      documents(spec)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("content", ["", "\n \n\n"])
def test_data_without_text_is_refused(tmp_path, content):
  path = tmp_path / "a.txt"
  path.write_text(content)
  with pytest.raises(JaxchopError, match=rf"data {path}: no text in it"):
    list(documents(str(path)))


def test_reading_goes_only_as_far_as_asked(tmp_path):
  path = tmp_path / "a.jsonl"
  path.write_text('{"text": "a"}\nnot json')
  assert next(documents(str(path))) == Document(f"{path}:1", "a")


def test_the_digest_tells_names_texts_and_order_apart():
  a, b = Document("x:1", "ab"), Document("x:2", "c")
  others = [[b, a], [a], [Document("x:1", "a"), Document("x:2", "bc")], [Document("x:1a", "b"), b]]
  assert len({digest(docs) for docs in ([a, b], *others)}) == 5
  assert digest([a, b]) == digest(iter([a, b]))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
  """A TFDS folder made without TensorFlow."""
  import tensorflow_datasets as tfds

  class Toy(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
      return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict({"text": tfds.features.Text()}))

    def _split_generators(self, _):
      return {"train": ((n, {"text": f"wörd {n}"}) for n in range(20)), "test": [(0, {"text": "last"})]}

    def _generate_examples(self):
      raise NotImplementedError

  folder = tmp_path_factory.mktemp("tfds")
  Toy(data_dir=folder, file_format="array_record").download_and_prepare()
  return folder


def test_a_prepared_tfds_folder_reads_without_tensorflow(prepared):
  found = list(documents(f"tfds://toy?data_dir={prepared}"))
  assert sorted(d.text for d in found) == sorted(f"wörd {n}" for n in range(20))
  assert found[0].source == "tfds://toy?split=train"
  assert [d.text for d in documents(f"tfds://toy?split=test&data_dir={prepared}")] == ["last"]
  assert len(list(documents(f"tfds://toy?split=train[:50%]&data_dir={prepared}"))) == 10
  assert "tensorflow" not in sys.modules


@pytest.mark.parametrize(
  ("spec", "message"),
  [
    ("toy?split=valid", "Unknown split 'valid'"),
    ("toy:2.0.0?split=test", "cannot be loaded at version 2.0.0"),
    ("nosuch?split=test", "Dataset nosuch not found"),
    # Known to the library, so that it would be downloaded and built if it were allowed to.
    ("tiny_shakespeare?split=test", "without TensorFlow only folders prepared with file_format='array_record'"),
  ],
)
def test_an_absent_tfds_data_set_is_refused_in_one_line(prepared, spec, message):
  with pytest.raises(JaxchopError, match=message) as caught:
    documents(f"tfds://{spec}&data_dir={prepared}")
  assert len(str(caught.value).splitlines()) == 1 and str(prepared) in str(caught.value)


def test_a_missing_tfds_feature_names_those_there_are(prepared):
  with pytest.raises(UsageError, match=r"tfds://toy\?split=test:1: no field 'content' but text; set text_field"):
    list(documents(f"tfds://toy?split=test&data_dir={prepared}", text_field="content"))


@pytest.fixture
def hub(tmp_path, monkeypatch):
  """A data set repository in the hub's cache, and the calls that were made for it."""
  jsonl(tmp_path / "train.jsonl", "a", "b")
  jsonl(tmp_path / "constrained.jsonl", "never")
  jsonl(tmp_path / "raw" / "test-00000.jsonl", "c")
  (tmp_path / "raw" / "train-00000-of-00001.parquet").parent.mkdir(exist_ok=True)
  pyarrow.parquet.write_table(pa.table({"text": ["d"]}), tmp_path / "raw" / "train-00000-of-00001.parquet")
  (tmp_path / "README.md").write_text("about train")
  calls = []

  def snapshot_download(name, **settings):
    calls.append((name, settings["repo_type"], settings["revision"]))
    return str(tmp_path)

  monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
  return calls


@pytest.mark.parametrize(
  ("spec", "texts"),
  [
    ("hf://org/name:train", ["d", "a", "b"]),
    ("hf://org/name/raw:train", ["d"]),
    ("hf://org/name/raw@v1:test", ["c"]),
    ("hf://org/name", ["never", "c", "d", "a", "b"]),
  ],
)
def test_a_hub_data_set_is_read_by_folder_and_split(hub, spec, texts):
  found = list(documents(spec))
  assert [document.text for document in found] == texts
  assert all(document.source.startswith("hf://org/name/") for document in found)
  assert hub == [("org/name", "dataset", "v1" if "@v1" in spec else None)]


def test_a_hub_split_without_files_is_refused(hub):
  with pytest.raises(UsageError, match=r"hf://org/name:valid: no \.parquet or \.jsonl file"):
    documents("hf://org/name:valid")


def test_an_unreachable_hub_is_one_line(tmp_path, monkeypatch):
  monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
  monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
  with pytest.raises(JaxchopError, match="data hf://org/name:train: cannot be fetched") as caught:
    documents("hf://org/name:train")
  assert len(str(caught.value).splitlines()) == 1
