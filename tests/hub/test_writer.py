"""writer: shards that the safetensors library reads, with the names, index and sizes that loaders expect."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file

from jaxchop.errors import JaxchopError, UsageError
from jaxchop.hub.digest import tensor_digest
from jaxchop.hub.safetensors import DTYPES, INDEX, SINGLE, read_headers
from jaxchop.hub.writer import Planned, blocks, plan_shards, write_tensors

SHAPES = {"a": (5, 3), "b": (7,), "c": (4, 4), "d": (1, 9), "e": (2, 2, 2)}


def tensors(kinds: dict[str, str]) -> tuple[list[Planned], dict[str, np.ndarray]]:
  rng = np.random.default_rng(0)
  planned = [Planned(name=name, dtype=kinds.get(name, "BF16"), shape=shape) for name, shape in SHAPES.items()]
  return planned, {t.name: rng.normal(size=t.shape).astype(DTYPES[t.dtype]) for t in planned}


def write(folder: Path, kinds: dict[str, str], **settings):
  planned, arrays = tensors(kinds)
  return write_tensors(folder, planned, lambda t: blocks(arrays[t.name]), **settings), arrays


@pytest.mark.parametrize("kinds", [{}, dict.fromkeys(SHAPES, "F32"), {"b": "F32", "d": "F16", "e": "F64"}])
@pytest.mark.parametrize("size", [1, 40, 10**9])
def test_the_safetensors_library_reads_the_same_tensors(tmp_path, kinds, size):
  written, arrays = write(tmp_path, kinds, max_shard_size=size)
  found = {name: value for file in written.files for name, value in load_file(tmp_path / file).items()}
  assert {name: (v.dtype, v.shape, v.tobytes()) for name, v in found.items()} == {
    name: (v.dtype, v.shape, v.tobytes()) for name, v in arrays.items()
  }


def test_files_say_that_they_are_torch_tensors_and_every_tensor_is_aligned(tmp_path):
  write(tmp_path, {"b": "F32", "e": "F64"})
  with safe_open(tmp_path / SINGLE, "np") as file:
    assert file.metadata() == {"format": "pt"}
  for stored in read_headers(tmp_path).values():
    assert stored.start % DTYPES[stored.dtype].itemsize == 0


def test_a_single_file_has_no_index(tmp_path):
  written, _ = write(tmp_path, {})
  assert written.files == (SINGLE,) and written.index is None


def test_the_index_is_sorted_indented_and_complete(tmp_path):
  written, arrays = write(tmp_path, {}, max_shard_size=50)
  assert written.index is not None
  index = json.loads(written.index)
  count = len(written.files)
  assert count > 1
  assert list(written.files) == [f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]
  assert index["metadata"] == {
    "total_parameters": sum(a.size for a in arrays.values()),
    "total_size": sum(a.nbytes for a in arrays.values()),
  }
  assert written.index.decode() == json.dumps(index, indent=2, sort_keys=True) + "\n"
  (tmp_path / INDEX).write_bytes(written.index)
  assert set(read_headers(tmp_path)) == set(arrays)


@given(sizes=st.lists(st.integers(1, 50), min_size=1, max_size=30), limit=st.integers(1, 120))
def test_shards_hold_every_tensor_once_in_order_and_keep_the_limit(sizes, limit):
  planned = [Planned(name=str(i), dtype="I8", shape=(size,)) for i, size in enumerate(sizes)]
  shards = plan_shards(planned, limit)
  assert [t.name for shard in shards.values() for t in shard] == [t.name for t in planned]
  for shard in shards.values():
    assert len(shard) == 1 or sum(t.bytes for t in shard) <= limit


def test_a_shard_size_below_one_is_refused(tmp_path):
  with pytest.raises(UsageError, match="max_shard_size is 0"):
    write(tmp_path, {}, max_shard_size=0)


@pytest.mark.parametrize("count, said", [(14, "56 bytes, but its shape takes 60"), (16, "more bytes than the 60")])
def test_bytes_that_do_not_fill_the_shape_are_refused(tmp_path, count, said):
  planned = [Planned(name="a", dtype="F32", shape=(5, 3))]
  with pytest.raises(JaxchopError, match=f"tensor a: {said}"):
    write_tensors(tmp_path, planned, lambda _: blocks(np.zeros(count, np.float32)))


@pytest.mark.parametrize("threads", [1, 3])
def test_the_number_of_threads_and_the_reuse_of_a_block_change_nothing(tmp_path, threads):
  planned, arrays = tensors({"b": "F32"})

  def source(tensor):
    raw = arrays[tensor.name].reshape(-1).view(np.uint8)
    step = DTYPES[tensor.dtype].itemsize
    block = np.empty(step, np.uint8)
    for start in range(0, raw.size, step):
      block[:] = raw[start : start + step]
      yield block

  written = write_tensors(tmp_path, planned, source, max_shard_size=70, threads=threads)
  found = {name: value for file in written.files for name, value in load_file(tmp_path / file).items()}
  assert all(found[name].tobytes() == array.tobytes() for name, array in arrays.items())
  assert written.digests == {
    t.name: tensor_digest(DTYPES[t.dtype], t.shape, [arrays[t.name].tobytes()]) for t in planned
  }


def test_one_thread_asks_for_the_tensors_in_the_order_of_the_files(tmp_path):
  planned, arrays = tensors({"b": "F32", "e": "F64"})
  asked = []

  def source(tensor):
    asked.append(tensor.name)
    return blocks(arrays[tensor.name])

  write_tensors(tmp_path, planned, source, max_shard_size=100)
  assert asked == [tensor.name for shard in plan_shards(planned, 100).values() for tensor in shard]


@pytest.mark.parametrize("threads", [1, 4])
def test_after_a_refusal_no_other_tensor_is_begun(tmp_path, threads):
  asked = []

  def source(tensor):
    asked.append(tensor.name)
    return blocks(np.full(1, np.nan, np.float32))

  planned = [Planned(name=str(i), dtype="F32", shape=(1,)) for i in range(1000)]
  with pytest.raises(JaxchopError, match="tensor 0: element 0 is nan"):
    write_tensors(tmp_path, planned, source, threads=threads)
  assert len(asked) <= threads


def test_a_bad_value_is_refused_under_its_tensor_s_name(tmp_path):
  planned, arrays = tensors({})
  arrays["c"][2, 1] = np.nan
  with pytest.raises(JaxchopError, match="tensor c: element 9 is nan"):
    write_tensors(tmp_path, planned, lambda t: blocks(arrays[t.name]))


def test_blocks_are_the_bytes_in_row_major_order_whatever_the_layout():
  array = np.arange(24, dtype=np.float32).reshape(4, 6)
  for view in (array, array.T, array[1:3, ::2]):
    assert b"".join(block.tobytes() for block in blocks(view)) == view.tobytes()


def test_a_large_tensor_comes_in_blocks_of_whole_elements():
  array = np.arange(3_000_001, dtype=np.float32)
  sizes = [block.nbytes for block in blocks(array)]
  assert len(sizes) > 1 and sum(sizes) == array.nbytes
  assert all(size % array.itemsize == 0 and size <= 1 << 20 for size in sizes)


def test_planned_bytes_follow_from_dtype_and_shape():
  assert Planned(name="t", dtype="BF16", shape=(3, 4)).bytes == 24 == 2 * math.prod((3, 4))
