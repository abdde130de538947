"""Text and caches in a bucket, which a file system in memory stands for."""

import gzip
import importlib
import json

import fsspec
import pyarrow as pa
import pyarrow.parquet
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from jaxchop.cli import main
from jaxchop.config import DataConfig
from jaxchop.data import remote
from jaxchop.data.pack import pack
from jaxchop.data.packed import open_packed
from jaxchop.data.sources import documents
from jaxchop.data.texts import is_cache, local_cache, read_splits
from jaxchop.errors import JaxchopError, UsageError


class Bucket(MemoryFileSystem):
  """Answers to gs:// and keeps all in memory."""

  protocol = "gs"
  store: dict = {}  # noqa: RUF012
  pseudo_dirs = [""]  # noqa: RUF012

  @classmethod
  def _strip_protocol(cls, path):
    return MemoryFileSystem._strip_protocol("memory://" + str(path).removeprefix("gs://"))

  def unstrip_protocol(self, name):
    return "gs://" + name.lstrip("/")


@pytest.fixture
def bucket(monkeypatch, tmp_path):
  """An empty bucket, and a cache folder of one's own."""
  monkeypatch.setitem(importlib.import_module("fsspec.registry")._registry, "gs", Bucket)
  monkeypatch.setenv("JAXCHOP_CACHE", str(tmp_path / "copies"))
  Bucket.store.clear()
  Bucket.pseudo_dirs[:] = [""]
  return Bucket()


@pytest.fixture
def cache(tmp_path, byte_tokenizer):
  pack(["words of a cache " * 9], byte_tokenizer, seq_len=8, out=tmp_path / "cache", eos=256)
  return tmp_path / "cache"


def test_texts_of_every_kind_are_read_from_a_bucket(bucket, tmp_path):
  line = json.dumps({"text": "one"}).encode() + b"\n"
  bucket.pipe({"gs://b/x/a.jsonl": line * 2, "gs://b/x/b.jsonl.gz": gzip.compress(line), "gs://b/x/c.txt": b"four\n"})
  pyarrow.parquet.write_table(pa.table({"text": ["five"]}), tmp_path / "d.parquet")
  bucket.put_file(str(tmp_path / "d.parquet"), "gs://b/x/d.parquet")
  found = list(documents("gs://b/x/*"))
  assert [document.text for document in found] == ["one", "one", "one", "four\n", "five"]
  assert found[1].name == "gs://b/x/a.jsonl:2"
  assert [document.text for document in documents("gs://b/x/c.txt")] == ["four\n"]


def test_what_is_not_in_a_bucket_is_named(bucket):
  bucket.pipe({"gs://b/a.csv": b"a", "gs://b/a.jsonl": b"{"})
  for spec, message in {
    "gs://b/c.txt": "data gs://b/c.txt: no such file, nor does one match",
    "gs://b/a.csv": "gs://b/a.csv: a file of text ends in",
    "gs://b/a.jsonl": "gs://b/a.jsonl:1: not JSON",
  }.items():
    with pytest.raises(JaxchopError, match=message):
      list(documents(spec))


def test_a_bucket_that_cannot_be_reached_is_one_line(bucket, monkeypatch):
  def fails(*_, **__):
    raise RuntimeError("403:\n not yours")

  monkeypatch.setattr(Bucket, "isfile", fails)
  with pytest.raises(JaxchopError, match=r"gs://b/a.txt: the bucket cannot be used \(RuntimeError: 403: not yours\)"):
    documents("gs://b/a.txt")


def test_without_the_package_for_buckets_it_is_named(monkeypatch):
  def missing(*_):
    raise ImportError("Please install gcsfs")

  monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
  with pytest.raises(UsageError, match=r"buckets need the package gcsfs; pip install 'jaxchop\[gcs\]'"):
    documents("gs://b/a.txt")


def test_a_cache_in_a_bucket_is_copied_once_and_is_the_same(bucket, cache, monkeypatch):
  bucket.put(f"{cache}/", "gs://b/cache/", recursive=True)
  assert is_cache("gs://b/cache") and not is_cache("gs://b/other")
  copy = local_cache("gs://b/cache")
  assert open_packed(copy).digest == open_packed(cache).digest
  monkeypatch.setattr(remote, "_fetch", lambda *_: pytest.fail("copied again"))
  assert local_cache("gs://b/cache/") == copy
  texts = read_splits(DataConfig(source="gs://b/cache", held_out="builtin"))
  assert texts.corpora == {"": copy}


def test_a_copy_that_was_interrupted_goes_on(bucket, cache, monkeypatch):
  bucket.put(f"{cache}/", "gs://b/cache/", recursive=True)
  fetch, calls = remote._fetch, []

  def interrupted(source, *rest):
    if calls:
      raise KeyboardInterrupt
    calls.append(source)
    fetch(source, *rest)

  with monkeypatch.context() as patch:
    patch.setattr(remote, "_fetch", interrupted)
    with pytest.raises(KeyboardInterrupt):
      local_cache("gs://b/cache")
  monkeypatch.setattr(remote, "_fetch", lambda source, *rest: calls.append(source) or fetch(source, *rest))
  assert open_packed(local_cache("gs://b/cache")).records == open_packed(cache).records
  assert len(calls) == len(set(calls)) == 3


def test_a_changed_file_in_a_bucket_is_refused(bucket, cache):
  bucket.put(f"{cache}/", "gs://b/cache/", recursive=True)
  name = "gs://b/cache/tokens-00000.array_record"
  data = bytearray(bucket.cat_file(name))
  data[100] ^= 1
  bucket.pipe_file(name, bytes(data))
  with pytest.raises(JaxchopError, match=rf"{name}: its bytes changed since it was packed"):
    local_cache("gs://b/cache")


def test_a_cache_is_built_into_a_bucket(bucket, tiny_folder, tmp_path, capsys):
  bucket.pipe_file("gs://b/text.txt", b"some words of text\n" * 99)
  model = str(tiny_folder())
  build = ["data", "build", "gs://b/text.txt", "-o", "gs://b/cache", "--model", model, "--seq_len", "16", "--quiet"]
  assert main([*build, "--workers", "1", "--json"]) == 0
  built = json.loads(capsys.readouterr().out)
  assert built["folder"] == "gs://b/cache" and built["sources"][0]["name"] == "gs://b/text.txt"
  assert open_packed(local_cache("gs://b/cache")).digest == built["digest"]
  assert main([*build, "--workers", "1"]) == 2
  assert "gs://b/cache: holds a finished cache" in capsys.readouterr().err
  assert not list((tmp_path / "copies" / "data").glob("building-*"))
