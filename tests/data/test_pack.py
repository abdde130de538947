import hashlib
import itertools
import json
import resource
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxchop.data import pack as packing
from jaxchop.data.pack import pack
from jaxchop.data.packed import open_packed
from jaxchop.data.sources import Document
from jaxchop.data.tokenise import tokenised
from jaxchop.errors import JaxchopError, UsageError
from jaxchop.files import locked

TEXTS = ["hello world", "ein Würfel\n", "🙂 and more of it"]


def docs(texts):
  return [Document(f"file-{n % 2}.jsonl:{n}", text) for n, text in enumerate(texts)]


def write(texts, tokenizer, out, seq_len=4, **settings):
  settings = {"overwrite": True, **settings}
  return pack(docs(texts), tokenizer, seq_len=seq_len, out=out, eos=tokenizer.eos_token_id, **settings)


def records(packed, name="tokens"):
  """All records, read by TFDS."""
  import tensorflow_datasets as tfds

  source = tfds.builder_from_directory(str(packed.path)).as_data_source("train")
  assert "tensorflow" not in sys.modules and len(source) == packed.records
  return np.array([row[name] for row in source])


def stream(texts, tokenizer):
  ids = [[*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id] for text in texts]
  return list(itertools.chain.from_iterable(ids))


def files(folder):
  return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


def small_parts(patch):
  """Lets a few records make a shard and a few letters a batch."""
  patch.setattr(packing, "SHARD_BYTES", 50)
  patch.setattr(packing, "_BATCH", 20)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.text(max_size=20), min_size=1, max_size=8), st.integers(1, 9), st.integers(1, 40))
def test_every_token_is_predicted_once_in_order(tmp_path_factory, byte_tokenizer, texts, seq_len, batch):
  expected = stream(texts, byte_tokenizer)
  if len(expected) <= seq_len:
    return
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(packing, "_BATCH", batch)
    packed = write(texts, byte_tokenizer, tmp_path_factory.mktemp("packed"), seq_len)
  rows = records(packed)
  assert rows.shape == (packed.records, seq_len + 1)
  assert [rows[0, 0], *rows[:, 1:].ravel()] == expected[: 1 + rows.shape[0] * seq_len]
  assert (rows[1:, 0] == rows[:-1, -1]).all()
  assert packed.tokens == len(expected) == 1 + packed.records * seq_len + packed.dropped_tokens
  assert packed.dropped_tokens < seq_len


def test_the_manifest_says_what_was_packed(tmp_path, byte_tokenizer):
  packed = write(TEXTS, byte_tokenizer, tmp_path)
  content = json.loads((tmp_path / "manifest.json").read_text())
  assert content["dtypes"] == {"tokens": "uint16"} and not packed.segments and content["eos"] == packed.eos == 256
  assert [(s["name"], s["documents"], s["bytes"]) for s in content["sources"]] == [
    ("file-0.jsonl", 2, len((TEXTS[0] + TEXTS[2]).encode())),
    ("file-1.jsonl", 1, len(TEXTS[1].encode())),
  ]
  assert content["versions"].keys() == {"jaxchop", "array_record", "tokenizers"}
  shard = packed.shards[0]
  data = (tmp_path / shard.file).read_bytes()
  assert (shard.bytes, shard.sha256) == (len(data), hashlib.sha256(data).hexdigest())
  assert files(tmp_path).keys() == {"manifest.json", "features.json", "dataset_info.json", "tokens-00000.array_record"}
  assert packed.describe()["documents"] == 3 and packed.describe()["bytes"] == len(data)


def test_one_record_is_enough_and_large_ids_take_32_bits(tmp_path, wide_tokenizer):
  packed = write(["abc"], wide_tokenizer, tmp_path, seq_len=3)
  assert packed.dtypes["tokens"] == np.uint32 and packed.records == 1
  assert records(packed).tolist() == [stream(["abc"], wide_tokenizer)]
  assert open_packed(tmp_path, wide_tokenizer) == packed


def test_the_same_text_gives_the_same_bytes_over_whatever_stood_there(tmp_path, byte_tokenizer, monkeypatch):
  monkeypatch.setattr(packing, "SHARD_BYTES", 50)
  write(TEXTS * 3, byte_tokenizer, tmp_path / "a")
  monkeypatch.setattr(packing, "SHARD_BYTES", 100)
  for folder in ("a", "b"):
    packed = write(TEXTS, byte_tokenizer, tmp_path / folder)
  assert files(tmp_path / "a") == files(tmp_path / "b") and len(packed.shards) > 1
  assert records(packed)[0].tolist() == stream(TEXTS, byte_tokenizer)[:5]


def test_a_text_shorter_than_a_record_is_refused(tmp_path, byte_tokenizer):
  with pytest.raises(JaxchopError, match=r"the text has 4 tokens, too few for a record of 5: .* at most 3"):
    write(["abc"], byte_tokenizer, tmp_path)


def test_impossible_settings_are_refused(tmp_path, byte_tokenizer):
  with pytest.raises(UsageError, match="seq_len is 0"):
    write(TEXTS, byte_tokenizer, tmp_path, seq_len=0)
  with pytest.raises(UsageError, match="EOS token 300 is outside the tokenizer's vocabulary of 257"):
    pack(docs(TEXTS), byte_tokenizer, seq_len=4, out=tmp_path, eos=300)


def test_a_build_that_fails_before_its_first_shard_leaves_no_folder(tmp_path, byte_tokenizer):
  with pytest.raises(Stopped):
    pack(until(LONG, 2), byte_tokenizer, seq_len=4, out=tmp_path / "new", eos=256)
  assert not (tmp_path / "new").exists()
  # One that was there stays, and so does what is finished.
  (tmp_path / "old").mkdir()
  with pytest.raises(Stopped):
    pack(until(LONG, 2), byte_tokenizer, seq_len=4, out=tmp_path / "old", eos=256)
  assert (tmp_path / "old").exists()


def test_a_folder_with_other_files_is_left_alone(tmp_path, byte_tokenizer):
  (tmp_path / "thesis.txt").write_text("precious")
  with pytest.raises(UsageError, match=r"thesis\.txt: packing did not write this file"):
    write(TEXTS, byte_tokenizer, tmp_path)
  assert files(tmp_path) == {"thesis.txt": b"precious"}


def test_a_file_in_the_place_of_the_folder_is_named(tmp_path, byte_tokenizer):
  (tmp_path / "file").write_text("precious")
  with pytest.raises(JaxchopError, match=r"file: no folder can be made there \(File exists\)"):
    write(TEXTS, byte_tokenizer, tmp_path / "file")


def test_a_finished_cache_is_replaced_only_where_that_is_asked_for(tmp_path, byte_tokenizer):
  write(TEXTS, byte_tokenizer, tmp_path, overwrite=False)
  before = files(tmp_path)
  with pytest.raises(UsageError, match=rf"{tmp_path}: holds a finished cache; choose another folder, or say overwrite"):
    write(TEXTS * 2, byte_tokenizer, tmp_path, overwrite=False)
  assert files(tmp_path) == before


def test_strings_are_documents_too(tmp_path, byte_tokenizer):
  packed = pack(iter(TEXTS), byte_tokenizer, seq_len=4, out=tmp_path, eos=256)
  assert packed.tokens == len(stream(TEXTS, byte_tokenizer)) and packed.sources[0]["name"] == "python"


@settings(max_examples=15, deadline=None)
@given(st.lists(st.text(alphabet="ab", max_size=9), min_size=3, max_size=9), st.integers(1, 7))
def test_segments_count_the_documents_of_a_record(tmp_path_factory, byte_tokenizer, texts, seq_len):
  owner = list(itertools.chain.from_iterable([n] * (len(text) + 1) for n, text in enumerate(texts)))
  if len(owner) <= seq_len:
    return
  with pytest.MonkeyPatch.context() as patch:
    small_parts(patch)
    packed = write(texts, byte_tokenizer, tmp_path_factory.mktemp("packed"), seq_len, segments=True)
  assert packed.segments
  for n, segments in enumerate(records(packed, "segments")):
    owners = owner[n * seq_len : (n + 1) * seq_len + 1]
    assert segments.tolist() == [1 + document - owners[0] for document in owners]


def test_any_number_of_processes_writes_the_same_bytes(tmp_path, byte_tokenizer, monkeypatch):
  small_parts(monkeypatch)
  texts = [f"text {n} " * (n % 7) for n in range(60)]
  for workers in (1, 3):
    write(texts, byte_tokenizer, tmp_path / str(workers), workers=workers, segments=True)
  assert files(tmp_path / "1") == files(tmp_path / "3") and len(files(tmp_path / "1")) > 10


class Stopped(Exception):
  pass


def until(texts, count):
  yield from docs(texts)[:count]
  raise Stopped


def rebuilt(texts, tokenizer, out, stops, **settings):
  """Builds a cache that is stopped after so many documents, again and again, and returns its files."""
  for stop in stops:
    with pytest.raises(Stopped):
      pack(until(texts, stop), tokenizer, seq_len=4, out=out, eos=256, **settings)
  write(texts, tokenizer, out, **settings)
  return files(out)


@settings(max_examples=15, deadline=None)
@given(
  st.lists(st.text(alphabet="ab", max_size=30), min_size=12, max_size=20),
  st.lists(st.integers(0, 12), min_size=1, max_size=3),
  st.booleans(),
)
def test_a_build_that_was_stopped_goes_on_to_the_same_bytes(tmp_path_factory, byte_tokenizer, texts, stops, segments):
  texts[0] = "a text that is long enough"
  with pytest.MonkeyPatch.context() as patch:
    small_parts(patch)
    write(texts, byte_tokenizer, tmp_path_factory.mktemp("at once") / "a", segments=segments)
    one, other = tmp_path_factory.mktemp("once"), tmp_path_factory.mktemp("again")
    write(texts, byte_tokenizer, one, segments=segments)
    assert rebuilt(texts, byte_tokenizer, other, stops, segments=segments) == files(one)


LONG = [f"the text of number {n}" for n in range(20)]


def test_what_is_finished_is_not_tokenised_again(tmp_path, byte_tokenizer, monkeypatch):
  small_parts(monkeypatch)
  with pytest.raises(Stopped):
    pack(until(LONG, 19), byte_tokenizer, seq_len=4, out=tmp_path, eos=256)
  seen = []
  monkeypatch.setattr(packing, "tokenised", lambda batches, *rest: tokenised(noted(batches, seen), *rest))
  write(LONG, byte_tokenizer, tmp_path)
  assert len(seen) < 5


def noted(batches, seen):
  for places, texts in batches:
    seen += texts
    yield places, texts


@pytest.mark.parametrize("flip", [40, -40])
def test_a_damaged_journal_or_shard_is_built_again(tmp_path, byte_tokenizer, monkeypatch, flip):
  small_parts(monkeypatch)
  write(LONG, byte_tokenizer, tmp_path / "whole")
  for name in ("building.jsonl", "tokens-00002.array_record.tmp"):
    out = tmp_path / name
    with pytest.raises(Stopped):
      pack(until(LONG, 15), byte_tokenizer, seq_len=4, out=out, eos=256)
    data = bytearray((out / name).read_bytes())
    data[flip] ^= 1
    (out / name).write_bytes(data)
    write(LONG, byte_tokenizer, out)
    assert files(out) == files(tmp_path / "whole")


def test_another_text_or_other_settings_begin_anew(tmp_path, byte_tokenizer, monkeypatch, caplog):
  small_parts(monkeypatch)
  others = ["another text than before", *LONG[1:]]
  for out in ("text", "seq_len"):
    with pytest.raises(Stopped):
      pack(until(LONG, 15), byte_tokenizer, seq_len=4, out=tmp_path / out, eos=256)
  with pytest.raises(JaxchopError, match=r"the text has changed since .* delete .*building\.jsonl to begin anew"):
    pack(iter(docs(others)), byte_tokenizer, seq_len=4, out=tmp_path / "text", eos=256)
  write(others, byte_tokenizer, tmp_path / "text")
  assert "the text has changed since this cache was begun" in caplog.text
  assert files(tmp_path / "text") == rebuilt(others, byte_tokenizer, tmp_path / "whole", [])
  write(LONG, byte_tokenizer, tmp_path / "seq_len", seq_len=5)
  write(LONG, byte_tokenizer, tmp_path / "whole", seq_len=5)
  assert files(tmp_path / "seq_len") == files(tmp_path / "whole")


def interrupted(*_):
  raise KeyboardInterrupt


@pytest.mark.parametrize(
  ("where", "moment"),
  [("encode", None), ("write_bytes", 1), ("write_bytes", 2), ("rename", 0), ("rename", 2), ("rename", 3)],
)
def test_an_interrupted_packing_leaves_the_old_records_or_none_and_goes_on(
  tmp_path, byte_tokenizer, monkeypatch, where, moment
):
  """A moment is the call of a function before which the build ends."""
  old = write(TEXTS, byte_tokenizer, tmp_path)
  with monkeypatch.context() as patch:
    if moment is None:
      patch.setattr(packing, where, interrupted)
    else:
      calls, (owner, real) = (
        itertools.count(),
        ((packing, packing.write_bytes) if where == "write_bytes" else (Path, Path.rename)),
      )
      patch.setattr(owner, where, lambda *given: interrupted() if next(calls) == moment else real(*given))
    with pytest.raises(KeyboardInterrupt):
      write(TEXTS * 2, byte_tokenizer, tmp_path)
  if where == "rename":
    with pytest.raises(JaxchopError, match=r"manifest\.json: missing, so packing did not finish"):
      open_packed(tmp_path)
  else:
    assert open_packed(tmp_path) == old
  assert write(TEXTS * 2, byte_tokenizer, tmp_path) == open_packed(tmp_path) != old
  assert files(tmp_path) == rebuilt(TEXTS * 2, byte_tokenizer, tmp_path / "other", [])


def test_a_second_process_is_refused(tmp_path, byte_tokenizer):
  with locked(tmp_path), pytest.raises(JaxchopError, match=r"another jaxchop writes here \(process \d+ on"):
    write(TEXTS, byte_tokenizer, tmp_path)
  write(TEXTS, byte_tokenizer, tmp_path)


@pytest.mark.parametrize("limit", [1 << 16, 300])
def test_a_full_disk_is_named_and_leaves_the_old_records(tmp_path, byte_tokenizer, limit):
  old = write(TEXTS, byte_tokenizer, tmp_path)
  ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
  try:
    with pytest.raises(JaxchopError, match=r"(tokens-00000\.array_record\.tmp|building\.jsonl): cannot be written"):
      write(["many words " * 9_000], byte_tokenizer, tmp_path)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    signal.signal(signal.SIGXFSZ, ignored)
  assert open_packed(tmp_path) == old
