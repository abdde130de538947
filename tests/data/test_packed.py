import json

import pytest

from jaxchop.data.pack import open_packed, pack
from jaxchop.data.packed import tokenizer_digest
from jaxchop.data.sources import Document
from jaxchop.errors import JaxchopError


@pytest.fixture
def folder(tmp_path, byte_tokenizer):
  pack([Document("a:1", "some text " * 20)], byte_tokenizer, seq_len=8, out=tmp_path, eos=256)
  return tmp_path


def test_whole_records_open(folder, byte_tokenizer):
  packed = open_packed(folder, byte_tokenizer)
  assert packed.records == 25 and packed.path == folder


def test_records_of_another_tokenizer_are_refused(folder, wide_tokenizer):
  with pytest.raises(JaxchopError, match=r"manifest\.json: packed with another tokenizer"):
    open_packed(folder, wide_tokenizer)


def test_the_digest_of_a_tokenizer_outlives_its_use(byte_tokenizer, wide_tokenizer):
  before = tokenizer_digest(byte_tokenizer)
  byte_tokenizer(["a", "bc"], truncation=True, max_length=1)
  assert tokenizer_digest(byte_tokenizer) == before != tokenizer_digest(wide_tokenizer)


def test_any_flipped_byte_is_found(folder):
  shard = folder / "tokens-00000.array_record"
  data = shard.read_bytes()
  for place in range(0, len(data), len(data) // 40):
    shard.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
    with pytest.raises(JaxchopError, match=rf"{shard}: its bytes changed since it was packed"):
      open_packed(folder)


@pytest.mark.parametrize("size", [0, 1, 1000, -1])
def test_a_truncated_shard_is_named(folder, size):
  shard = folder / "tokens-00000.array_record"
  shard.write_bytes(shard.read_bytes()[:size])
  with pytest.raises(JaxchopError, match=rf"{shard}: \d+ bytes, but \d+ were packed; pack the text again"):
    open_packed(folder)


def test_a_missing_shard_is_named(folder):
  (folder / "tokens-00000.array_record").unlink()
  with pytest.raises(JaxchopError, match=r"tokens-00000\.array_record: missing"):
    open_packed(folder)


def test_no_packed_records_at_all(tmp_path):
  with pytest.raises(JaxchopError, match=r"manifest\.json: missing, so packing did not finish or was never done"):
    open_packed(tmp_path)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (lambda c: c.update(format="jaxchop packed tokens 0"), "not the manifest of"),
    (lambda c: c.pop("seq_len"), "'seq_len' is missing"),
    (lambda c: c.update(tokens=-1), "'tokens' is missing or not a valid int"),
    (lambda c: c.update(records=c["records"] + 1), "'records' is not the sum"),
    (lambda c: c.update(dtype="float64"), "dtype is neither uint16 nor uint32"),
    (lambda c: c.update(shards={}), "'shards' is missing or not a valid list"),
    (lambda c: c.update(shards=[], records=0), "there is no shard"),
    (lambda c: c.update(shards=["a"]), "'file' is missing"),
    (lambda c: c["shards"][0].update(file="../tokens-00000.array_record"), "not the name of a shard"),
    (lambda c: c["shards"][0].update(file="/etc/passwd"), "not the name of a shard"),
  ],
)
def test_a_manifest_that_makes_no_sense_is_refused(folder, change, message):
  manifest = folder / "manifest.json"
  content = json.loads(manifest.read_text())
  change(content)
  manifest.write_text(json.dumps(content))
  with pytest.raises(JaxchopError, match=message) as caught:
    open_packed(folder)
  assert str(caught.value).startswith(str(manifest)) and len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b"[" * 100_000])
def test_a_manifest_that_is_no_json_object_is_refused(folder, content):
  (folder / "manifest.json").write_bytes(content)
  with pytest.raises(JaxchopError, match=r"manifest\.json: (cannot be read as JSON|not the manifest)"):
    open_packed(folder)
