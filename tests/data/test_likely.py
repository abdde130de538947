"""Likely tokens on disk: what stands is read back as written, damage is found, another teacher begins anew."""

import pickle
from pathlib import Path

import numpy as np
import pytest

from jaxchop.data.likely import INDEX, LikelyTokens
from jaxchop.errors import JaxchopError

T, K = 5, 3
ABOUT = {"teacher": "one", "top": K}


def said(records: list[int]) -> tuple[np.ndarray, np.ndarray]:
  ids_NTK = np.stack([np.arange(T * K).reshape(T, K) + 100 * record for record in records])
  return ids_NTK.astype(np.int32), -ids_NTK.astype(np.float32) / 7


@pytest.fixture
def folder(tmp_path: Path) -> Path:
  store = LikelyTokens(tmp_path / "taught", ABOUT)
  store.add([4, 9], *said([4, 9]))
  store.add([1], *said([1]))
  return tmp_path / "taught"


def test_every_record_comes_back_as_it_was_written(folder: Path) -> None:
  store = pickle.loads(pickle.dumps(LikelyTokens(folder, ABOUT)))
  for record in (9, 1, 4):
    for found, wanted in zip(store[record], said([record]), strict=True):
      assert found.dtype == wanted.dtype
      np.testing.assert_array_equal(found, wanted[0])


def test_arrays_that_lie_in_another_order_are_written_as_they_read(tmp_path: Path) -> None:
  store = LikelyTokens(tmp_path, ABOUT)
  ids_NTK, shares_NTK = said([0, 1])
  store.add([0, 1], np.asfortranarray(ids_NTK), shares_NTK[:, :, ::-1])
  np.testing.assert_array_equal(store[1][0], ids_NTK[1])
  np.testing.assert_array_equal(store[1][1], shares_NTK[1, :, ::-1])


def test_only_what_is_missing_is_asked_for(folder: Path) -> None:
  store = LikelyTokens(folder, ABOUT)
  assert store.missing([9, 2, 1, 0, 2]) == [0, 2]
  store.add([0, 2], *said([0, 2]))
  assert LikelyTokens(folder, ABOUT).missing([9, 2, 1, 0]) == []


def test_another_teacher_begins_anew(folder: Path) -> None:
  other = LikelyTokens(folder, ABOUT | {"teacher": "another"})
  assert other.missing([1, 4, 9]) == [1, 4, 9]
  # Until it has said something, what the first one said stands.
  assert LikelyTokens(folder, ABOUT).missing([1]) == []
  other.add([4], *said([4]))
  assert LikelyTokens(folder, ABOUT).missing([1, 4]) == [1, 4]


@pytest.mark.parametrize("damage", ["changed", "missing"])
def test_a_damaged_file_is_named(folder: Path, damage: str) -> None:
  path = folder / "likely-00000.safetensors"
  if damage == "missing":
    path.unlink()
  else:
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
  with pytest.raises(JaxchopError, match=rf"likely-00000\.safetensors: .*{damage}.*; remove .*taught and run the same"):
    LikelyTokens(folder, ABOUT)


def test_a_file_that_the_index_does_not_know_is_written_again(folder: Path) -> None:
  index = (folder / INDEX).read_text()
  LikelyTokens(folder, ABOUT).add([7], *said([7]))
  # Killed between the file and the index.
  (folder / INDEX).write_text(index)
  store = LikelyTokens(folder, ABOUT)
  assert store.missing([7]) == [7]
  store.add([7, 8], *said([7, 8]))
  np.testing.assert_array_equal(store[8][0], said([8])[0][0])
