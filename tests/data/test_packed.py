import dataclasses
import json

import pytest

from jaxchop.data.pack import pack
from jaxchop.data.packed import manifest_bytes, open_packed, tokenizer_digest
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


FILES = ("manifest.json", "features.json", "dataset_info.json", "tokens-00000.array_record")


@pytest.mark.parametrize("name", FILES)
def test_any_flipped_bit_is_refused(folder, name):
  """The manifest is small: each of its bytes in turn. A bit that changes nothing of what it says is harmless."""
  file = folder / name
  data, whole, refused = file.read_bytes(), open_packed(folder), 0
  places = range(0, len(data), 1 if name == "manifest.json" else max(len(data) // 40, 1))
  for place in places:
    file.write_bytes(data[:place] + bytes([data[place] ^ (1 << place % 8)]) + data[place + 1 :])
    try:
      found = open_packed(folder)
    except JaxchopError as error:
      assert str(error).startswith(str(file)) and len(str(error).splitlines()) == 1
      refused += 1
    else:
      assert name == "manifest.json" and dataclasses.replace(found, digest=whole.digest) == whole
  assert refused == len(places) or (name == "manifest.json" and refused > 0.7 * len(places))


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("share", [0, 0.001, 0.5, 0.999])
def test_a_truncated_file_is_named(folder, name, share):
  file = folder / name
  file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
  with pytest.raises(JaxchopError, match=rf"{file}: .*; pack the text again"):
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
    (lambda c: c.update(format="jaxchop packed tokens 1"), "not the manifest of"),
    (lambda c: c.pop("seq_len"), "'seq_len' is missing"),
    (lambda c: c.update(tokens=-1), "'tokens' is missing or not a valid int"),
    (lambda c: c.update(records=c["records"] + 1), "'records' is not the sum"),
    (lambda c: c["dtypes"].update(tokens="float64"), "'dtypes' is not what this version stores"),
    (lambda c: c["dtypes"].pop("tokens"), "'dtypes' is not what this version stores"),
    (lambda c: c["dtypes"].update(weights="uint16"), "'dtypes' is not what this version stores"),
    (lambda c: c.update(shards={}), "'shards' is missing or not a valid list"),
    (lambda c: c.update(shards=[], records=0), "'records' is not the sum"),
    (lambda c: c.update(shards=["a"]), "'file' is missing"),
    (lambda c: c["shards"][0].update(file="../tokens-00000.array_record"), "not the name of a packed file"),
    (lambda c: c["shards"][0].update(file="/etc/passwd"), "not the name of a packed file"),
    (lambda c: c["beside"][0].update(file="../features.json"), "not the name of a packed file"),
  ],
)
def test_a_manifest_that_makes_no_sense_is_refused(folder, change, message):
  manifest = folder / "manifest.json"
  content = json.loads(manifest.read_text())
  content.pop("sha256")
  change(content)
  manifest.write_bytes(manifest_bytes(content))
  with pytest.raises(JaxchopError, match=message) as caught:
    open_packed(folder)
  assert str(caught.value).startswith(str(manifest)) and len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b"[" * 100_000])
def test_a_manifest_that_is_no_json_object_is_refused(folder, content):
  (folder / "manifest.json").write_bytes(content)
  with pytest.raises(JaxchopError, match=r"manifest\.json: (cannot be read as JSON|not the manifest)"):
    open_packed(folder)
