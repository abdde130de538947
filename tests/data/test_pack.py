import hashlib
import itertools
import json
import resource
import signal

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordReader
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxchop.data import pack as packing
from jaxchop.data.pack import open_packed, pack
from jaxchop.data.sources import Document
from jaxchop.errors import JaxchopError, UsageError

TEXTS = ["hello world", "ein Würfel\n", "🙂 and more of it"]


def docs(texts):
  return [Document(f"file-{n % 2}.jsonl:{n}", text) for n, text in enumerate(texts)]


def write(texts, tokenizer, out, seq_len=4):
  return pack(docs(texts), tokenizer, seq_len=seq_len, out=out, eos=tokenizer.eos_token_id)


def records(packed):
  """All records, by the format's own reader."""
  rows = []
  for shard in packed.shards:
    reader = ArrayRecordReader(str(packed.path / shard.file))
    rows += [np.frombuffer(record, packed.dtype) for record in reader.read_all()]
    reader.close()
  return np.array(rows)


def stream(texts, tokenizer):
  ids = [[*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id] for text in texts]
  return list(itertools.chain.from_iterable(ids))


def files(folder):
  return {path.name: path.read_bytes() for path in folder.iterdir()}


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
  assert content["dtype"] == packed.dtype == "uint16" and content["eos"] == packed.eos == 256
  assert [(s["name"], s["documents"], s["bytes"]) for s in content["sources"]] == [
    ("file-0.jsonl", 2, len((TEXTS[0] + TEXTS[2]).encode())),
    ("file-1.jsonl", 1, len(TEXTS[1].encode())),
  ]
  assert content["versions"].keys() == {"jaxchop", "array_record", "tokenizers"}
  shard = packed.shards[0]
  data = (tmp_path / shard.file).read_bytes()
  assert (shard.bytes, shard.sha256) == (len(data), hashlib.sha256(data).hexdigest())
  assert files(tmp_path).keys() == {"manifest.json", "tokens-00000.array_record"}


def test_one_record_is_enough_and_large_ids_take_32_bits(tmp_path, wide_tokenizer):
  packed = write(["abc"], wide_tokenizer, tmp_path, seq_len=3)
  assert packed.dtype == "uint32" and packed.records == 1
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


def test_a_folder_with_other_files_is_left_alone(tmp_path, byte_tokenizer):
  (tmp_path / "thesis.txt").write_text("precious")
  with pytest.raises(UsageError, match=r"thesis\.txt: packing did not write this file"):
    write(TEXTS, byte_tokenizer, tmp_path)
  assert files(tmp_path) == {"thesis.txt": b"precious"}


def interrupted(*_):
  raise KeyboardInterrupt


@pytest.mark.parametrize("moment", ["_write_shard", "_commit", "write_json"])
def test_an_interrupted_packing_leaves_the_old_records_or_none_and_can_be_repeated(
  tmp_path, byte_tokenizer, monkeypatch, moment
):
  old = write(TEXTS, byte_tokenizer, tmp_path)
  with monkeypatch.context() as patch:
    patch.setattr(packing, moment, interrupted)
    with pytest.raises(KeyboardInterrupt):
      write(TEXTS * 2, byte_tokenizer, tmp_path)
  if moment == "write_json":
    with pytest.raises(JaxchopError, match=r"manifest\.json: missing, so packing did not finish"):
      open_packed(tmp_path)
  else:
    assert open_packed(tmp_path) == old
  assert write(TEXTS * 2, byte_tokenizer, tmp_path) == open_packed(tmp_path) != old
  assert files(tmp_path).keys() == {"manifest.json", "tokens-00000.array_record"}


def test_a_full_disk_is_named_and_leaves_the_old_records(tmp_path, byte_tokenizer):
  old = write(TEXTS, byte_tokenizer, tmp_path)
  ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, limits[1]))
  try:
    with pytest.raises(JaxchopError, match=r"tokens-00000\.array_record\.tmp: cannot be written"):
      write(["many words " * 9_000], byte_tokenizer, tmp_path)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    signal.signal(signal.SIGXFSZ, ignored)
  assert open_packed(tmp_path) == old
