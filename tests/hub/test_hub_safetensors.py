"""A safetensors folder is read byte for byte, or refused with one line that names file and tensor."""

import json
import os
import struct

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file
from tiny_models import write_weights

from jaxchop.errors import JaxchopError
from jaxchop.hub.safetensors import DTYPES, INDEX, SINGLE, read, read_header, read_headers


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
  return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def packed(header, data=b"\0" * 8, length=None):
  raw = header if isinstance(header, bytes) else json.dumps(header).encode()
  return struct.pack("<Q", len(raw) if length is None else length) + raw + data


@pytest.fixture
def sharded(tmp_path):
  """A good folder of three shards; tests break it."""
  weights = {name: np.full((2, 3), number, np.float32) for number, name in enumerate("abcdef")}
  write_weights(tmp_path, weights, shards=3)
  return tmp_path


def edit_index(folder, change):
  index = json.loads((folder / INDEX).read_text())
  change(index)
  (folder / INDEX).write_text(json.dumps(index))


def refusal(action, *args):
  with pytest.raises(JaxchopError) as caught:
    action(*args)
  assert "\n" not in str(caught.value)
  return str(caught.value)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("shards", [1, 3])
def test_tensors_are_those_of_the_safetensors_library(tiny_folder, dtype, shards):
  folder = tiny_folder(dtype=dtype, shards=shards)
  wanted = {name: value for file in folder.glob("*.safetensors") for name, value in load_file(file).items()}
  found = {name: read(stored) for name, stored in read_headers(folder).items()}
  assert found.keys() == wanted.keys()
  for name, value in wanted.items():
    assert (found[name].dtype, found[name].tobytes()) == (value.dtype, value.tobytes())


SLICES = st.builds(slice, st.none() | st.integers(-6, 6), st.none() | st.integers(-6, 6))


@given(rows=SLICES, columns=SLICES)
def test_a_slice_is_the_slice_of_the_whole(tmp_path_factory, rows, columns):
  folder = tmp_path_factory.mktemp("slices")
  whole = np.arange(20).reshape(4, 5).astype(ml_dtypes.bfloat16)
  write_weights(folder, {"w": whole})
  stored = read_headers(folder)["w"]
  assert np.array_equal(read(stored, (rows, columns)), whole[rows, columns])
  assert np.array_equal(read(stored, rows), whole[rows])


def test_scalars_and_empty_tensors_are_read(tmp_path):
  write_weights(tmp_path, {"scalar": np.array(3.0, np.float32), "empty": np.zeros((0, 4), np.float16)})
  found = read_headers(tmp_path)
  assert read(found["scalar"]) == 3.0
  assert read(found["empty"]).shape == (0, 4)


def test_every_known_dtype_has_the_size_the_format_gives_it():
  bits = {name: int("".join(c for c in name.split("_")[0] if c.isdigit()) or 8) for name in DTYPES}
  assert {name: dtype.itemsize * 8 for name, dtype in DTYPES.items()} == bits


TWO = {"a": entry(), "b": entry(offsets=(8, 16))}
BROKEN = {
  "empty": (b"", "truncated"),
  "seven bytes": (b"\0" * 7, "truncated"),
  "header longer than the file": (packed({}, b"", length=100), "header of 100 bytes"),
  "header of a terabyte": (packed({}, b"", length=2**40), "header of 1099511627776"),
  "header of 2^63": (packed({}, b"", length=2**63), "header of 9223372036854775808"),
  "not JSON": (packed(b"{oops", b""), "not JSON"),
  "not UTF-8": (packed(b'{"\xff":1}', b""), "not JSON"),
  "a list": (packed(b"[]", b""), "not a JSON object"),
  "nested too deep": (packed(b'{"a":' + b"[" * 100_000, b""), "not JSON"),
  "a number of 5000 digits": (packed(b'{"a":' + b"9" * 5000 + b"}", b""), "not JSON"),
  "metadata that is no text": (packed({"__metadata__": {"n": 1}}, b""), "__metadata__"),
  "duplicate name": (packed(b'{"a":1,"a":2}'), "'a' stands there twice"),
  "duplicate key": (packed(b'{"a":{"dtype":"F32","dtype":"F16"}}'), "'dtype' stands there twice"),
  "entry without dtype": (packed({"a": {"shape": [2], "data_offsets": [0, 8]}}), "tensor a in .*header entry"),
  "unknown dtype": (packed({"a": entry("F31")}), "tensor a in .*unknown dtype F31"),
  "dtype that is no text": (packed({"a": entry(["F32"])}), "tensor a in .*unknown dtype"),
  "negative shape": (packed({"a": entry(shape=(-2,))}), "tensor a in .*whole numbers"),
  "fractional shape": (packed({"a": entry(shape=(2.0,))}), "tensor a in .*whole numbers"),
  "boolean shape": (packed({"a": entry(shape=(True, 2))}), "tensor a in .*whole numbers"),
  "negative offset": (packed({"a": entry(offsets=(-8, 0))}), "tensor a in .*whole numbers"),
  "backward offsets": (packed({"a": entry(offsets=(8, 0))}), "tensor a in .*takes 8 bytes"),
  "three offsets": (packed({"a": entry(offsets=(0, 4, 8))}), "tensor a in .*whole numbers"),
  "shape and offsets disagree": (packed({"a": entry(shape=(3,))}), "tensor a in .*takes 12 bytes.*give 8"),
  "shape that overflows": (packed({"a": entry(shape=(2**62, 4, 4))}), "tensor a in .*takes"),
  "overlap": (packed({"a": entry(), "b": entry(offsets=(4, 12))}, b"\0" * 12), "tensor b in .*overlaps"),
  "hole": (packed({"a": entry(), "b": entry(offsets=(12, 20))}, b"\0" * 20), "tensor b in .*unused bytes"),
  "hole in front": (packed({"a": entry(offsets=(4, 12))}, b"\0" * 12), "tensor a in .*unused bytes"),
  "truncated data": (packed(TWO, b"\0" * 15), "tensor b in .*truncated"),
  "trailing byte": (packed(TWO, b"\0" * 17), "1 bytes follow"),
  "a name of two lines": (packed({"a\nb": entry("F31")}), r"tensor 'a\\nb' in"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_is_refused(tmp_path, case):
  content, complaint = BROKEN[case]
  (tmp_path / SINGLE).write_bytes(content)
  with pytest.raises(JaxchopError, match=complaint):
    read_headers(tmp_path)
  assert str(tmp_path / SINGLE) in refusal(read_headers, tmp_path)


@given(st.integers(0, 400), st.integers(0, 255))
def test_no_flipped_byte_of_a_header_gives_anything_but_a_refusal_or_sound_bounds(tmp_path_factory, position, value):
  path = tmp_path_factory.mktemp("flip") / SINGLE
  raw = bytearray(packed(TWO, b"\0" * 16))
  raw[position % len(raw)] = value
  path.write_bytes(raw)
  try:
    found = read_header(path)
  except JaxchopError:
    return
  assert all(8 <= stored.start <= stored.stop <= len(raw) for stored in found.values())


OUTSIDE = [
  "../secret.safetensors",
  "/etc/passwd",
  "a/../../secret.safetensors",
  "..",
  ".",
  "",
  "a\0b",
  "sub\\x",
  "sub/x",
]


@pytest.mark.parametrize("file", OUTSIDE)
def test_an_index_cannot_lead_out_of_the_folder(sharded, file):
  edit_index(sharded, lambda index: index["weight_map"].update(a=file))
  message = refusal(read_headers, sharded)
  assert str(sharded / INDEX) in message and "not a plain name" in message


def test_an_index_cannot_lead_out_through_a_link(sharded, tmp_path_factory):
  elsewhere = tmp_path_factory.mktemp("elsewhere")
  write_weights(elsewhere, {"a": np.zeros(2, np.float32)})
  shard = sharded / "model-00001-of-00003.safetensors"
  shard.unlink()
  shard.symlink_to(elsewhere / SINGLE)
  assert "is a link to" in refusal(read_headers, sharded)


def test_a_single_file_that_is_a_link_out_of_the_folder_is_refused(tmp_path):
  (tmp_path / "model").mkdir()
  (tmp_path / "secret").write_bytes(packed({"a": entry()}))
  (tmp_path / "model" / SINGLE).symlink_to(tmp_path / "secret")
  assert "outside the folder" in refusal(read_headers, tmp_path / "model")


@pytest.mark.parametrize("blobs", ["models--org--name/blobs", "blobs/ab"])
def test_the_links_of_the_hub_cache_are_followed(tmp_path, blobs):
  snapshot = tmp_path / "models--org--name" / "snapshots" / "0123abc"
  snapshot.mkdir(parents=True)
  (tmp_path / blobs).mkdir(parents=True)
  (tmp_path / blobs / "hash").write_bytes(packed({"a": entry()}))
  (snapshot / SINGLE).symlink_to(os.path.relpath(tmp_path / blobs / "hash", snapshot))
  assert list(read_headers(snapshot)) == ["a"]


def test_a_link_out_of_the_hub_cache_is_refused(tmp_path):
  snapshot = tmp_path / "hub" / "models--org--name" / "snapshots" / "0123abc"
  snapshot.mkdir(parents=True)
  (tmp_path / "secret").write_bytes(packed({"a": entry()}))
  (snapshot / SINGLE).symlink_to(tmp_path / "secret")
  assert "outside the folder" in refusal(read_headers, snapshot)


def test_a_directory_or_a_pipe_in_place_of_a_file_is_refused(sharded):
  (sharded / "folder").mkdir()
  os.mkfifo(sharded / "pipe")
  for name in ("folder", "pipe"):
    edit_index(sharded, lambda index, name=name: index["weight_map"].update(a=name))
    assert f"{sharded / name} is not a file" in refusal(read_headers, sharded)


def test_a_missing_shard_is_refused_by_name(sharded):
  (sharded / "model-00002-of-00003.safetensors").unlink()
  message = refusal(read_headers, sharded)
  assert "model-00002-of-00003.safetensors" in message and "No such file" in message


def drop_b(index):
  del index["weight_map"]["b"]


INDEX_FAULTS = {
  "absent tensor": (lambda i: i["weight_map"].update(z="model-00001-of-00003.safetensors"), "tensor z is not in"),
  "wrong shard": (lambda i: i["weight_map"].update(a="model-00002-of-00003.safetensors"), "tensor a is said to be in"),
  "unlisted tensor": (drop_b, "tensor b in model-00002-of-00003.safetensors is not in the index"),
  "wrong total_size": (lambda i: i["metadata"].update(total_size=143), "total_size is 143, the tensors take 144"),
  "total_size that is no number": (lambda i: i["metadata"].update(total_size="144"), "total_size"),
  "no weight_map": (lambda i: i.pop("weight_map"), "no weight_map"),
  "empty weight_map": (lambda i: i["weight_map"].clear(), "no weight_map"),
  "a file that is no name": (lambda i: i["weight_map"].update(a=7), "7"),
}


@pytest.mark.parametrize("fault", INDEX_FAULTS)
def test_an_index_that_disagrees_with_its_shards_is_refused(sharded, fault):
  change, complaint = INDEX_FAULTS[fault]
  edit_index(sharded, change)
  assert complaint in refusal(read_headers, sharded)


def test_a_tensor_in_two_shards_is_refused(sharded):
  first, second = (sharded / f"model-0000{n}-of-00003.safetensors" for n in (1, 2))
  second.write_bytes(first.read_bytes())
  assert "tensor a lies in both" in refusal(read_headers, sharded)


def test_a_shard_named_twice_in_the_index_file_itself_is_refused(sharded):
  text = (sharded / INDEX).read_text().replace('"a":', '"b":', 1)
  (sharded / INDEX).write_text(text)
  assert "'b' stands there twice" in refusal(read_headers, sharded)


def test_a_folder_with_both_a_single_file_and_an_index_is_refused(sharded):
  write_weights(sharded, {"a": np.zeros(2, np.float32)})
  assert "both" in refusal(read_headers, sharded)


class Touch:
  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return (open, (str(self.path), "w"))


def test_pickled_weights_are_refused_unread(tmp_path):
  import pickle

  (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(Touch(tmp_path / "touched")))
  message = refusal(read_headers, tmp_path)
  assert "pytorch_model.bin" in message and "save_pretrained" in message
  assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize(
  ("file", "complaint"),
  [
    ("adapter_model.safetensors", "LoRA adapter"),
    ("model-00001-of-00002.safetensors", "no model.safetensors.index.json"),
  ],
)
def test_a_folder_without_a_whole_model_says_what_it_holds(tmp_path, file, complaint):
  (tmp_path / file).write_bytes(packed({"a": entry()}))
  assert complaint in refusal(read_headers, tmp_path)


def test_a_file_that_shrank_since_it_was_opened_is_refused(tmp_path):
  write_weights(tmp_path, {"a": np.ones((4, 4), np.float32)})
  stored = read_headers(tmp_path)["a"]
  os.truncate(tmp_path / SINGLE, stored.stop - 1)
  assert "tensor a in" in refusal(read, stored)
