import gzip
import json

import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxchop.data import files
from jaxchop.errors import JaxchopError, UsageError


def texts(path, text_field="text"):
  return list(files.texts(path, text_field))


def write_parquet(path, columns):
  pyarrow.parquet.write_table(pa.table(columns), path)
  return path


# Few letters and many line ends: cuts everywhere.
@given(st.text(alphabet="ab \t\n\n\n", max_size=80), st.integers(1, 20))
def test_pieces_joined_by_a_blank_line_give_back_the_text(text, size):
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(files, "PIECE", size)
    pieces = list(files.pieces(text.splitlines(keepends=True)))
  assert all(piece.strip() for piece in pieces)
  assert "\n\n".join(pieces) == (text if text.strip() else "")


@given(st.lists(st.text(alphabet="ab", min_size=1, max_size=9), min_size=1, max_size=30))
def test_a_text_is_cut_at_the_first_blank_line_behind_the_size(paragraphs):
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(files, "PIECE", 12)
    pieces = list(files.pieces("\n\n".join(paragraphs).splitlines(keepends=True)))
  assert all(12 <= len(piece) + 1 <= 12 + 11 for piece in pieces[:-1])


def test_pieces_of_a_book_are_about_4000_characters(tmp_path):
  path = tmp_path / "book.txt"
  text = "\n\n".join(f"Paragraph {n}. " + "word " * (n % 90) for n in range(500))
  path.write_text(text)
  found = [text for _, text in texts(path)]
  assert "\n\n".join(found) == text
  assert all(3_990 <= len(piece) <= 4_500 for piece in found[:-1])


@pytest.mark.parametrize("ends", ["\r\n", "\r", "\n"])
def test_line_ends_and_byte_order_marks_are_normalised(tmp_path, ends):
  path = tmp_path / "a.md"
  path.write_bytes(b"\xef\xbb\xbf" + ends.join(["one", "", "zwölf", ""]).encode())
  assert texts(path) == [(1, "one\n\nzwölf\n")]


@pytest.mark.parametrize("suffix", [".txt", ".jsonl"])
@pytest.mark.parametrize(
  ("ending", "compress"), [(".gz", gzip.compress), (".zst", lambda data: pa.Codec("zstd").compress(data, asbytes=True))]
)
def test_compressed_files_read_as_plain_ones(tmp_path, suffix, ending, compress):
  data = b"".join(b'{"text": "line %d"}\n' % n for n in range(30_000))
  plain, packed = tmp_path / f"a{suffix}", tmp_path / f"a{suffix}{ending}"
  plain.write_bytes(data)
  # Two frames behind each other, as parallel compressors write them.
  packed.write_bytes(compress(data[:100_000]) + compress(data[100_000:]))
  assert texts(packed) == texts(plain) and len(texts(plain)) == (30_000 if suffix == ".jsonl" else 1)
  packed.write_bytes(packed.read_bytes()[:-9])
  with pytest.raises(JaxchopError, match=rf"{packed}: cannot be read \(.*[Tt]runcated"):
    texts(packed)


def test_a_jsonl_line_is_a_text_and_blank_ones_are_left_out(tmp_path):
  path = tmp_path / "a.jsonl"
  path.write_text('{"text": "a\\u2028b"}\n\n{"text": " "}\r\n{"text": null}\n{"text": "d", "id": 4}')
  assert texts(path) == [(1, "a\u2028b"), (5, "d")]


@pytest.mark.parametrize(
  ("line", "message"),
  [
    ('{"text": "a"', r"a\.jsonl:2: not JSON"),
    ("[" * 100_000, r"a\.jsonl:2: not JSON"),
    ('["a"]', r"a\.jsonl:2: not an object but list"),
    ('{"content": "a", "id": 1}', r"a\.jsonl:2: no field 'text' but content, id; set text_field"),
    ('{"text": 3}', r"a\.jsonl:2: field 'text' holds int, not text"),
    ('{"text": "\\ud83d"}', r"a\.jsonl:2: 'text' holds half of a surrogate pair"),
  ],
)
def test_a_bad_jsonl_line_is_named(tmp_path, line, message):
  path = tmp_path / "a.jsonl"
  path.write_text('{"text": "fine"}\n' + line + "\n")
  with pytest.raises(JaxchopError, match=message) as caught:
    texts(path)
  assert len(str(caught.value).splitlines()) == 1


def test_invalid_utf8_is_named_by_its_offset(tmp_path):
  path = tmp_path / "a.txt"
  path.write_bytes("grün\nblau\n".encode() + b"\xff\xfe")
  with pytest.raises(JaxchopError, match=rf"{path}: byte 11 is not UTF-8"):
    texts(path)


def test_parquet_gives_one_column_row_by_row(tmp_path):
  rows = [f"row {n}" for n in range(3_000)]
  path = write_parquet(tmp_path / "a.parquet", {"id": list(range(3_000)), "body": rows})
  assert texts(path, "body") == list(enumerate(rows, start=1))
  with pytest.raises(UsageError, match=r"a\.parquet: no field 'text' but body, id; set text_field"):
    texts(path)
  with pytest.raises(UsageError, match="field 'id' holds int, not text"):
    texts(path, "id")


def test_parquet_leaves_out_nulls_and_names_broken_text(tmp_path):
  path = write_parquet(tmp_path / "a.parquet", {"text": ["a", None, "", "d"]})
  assert texts(path) == [(1, "a"), (4, "d")]
  broken = pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\2\0\0\0"), pa.py_buffer(b"a\xff")])
  with pytest.raises(JaxchopError, match=r"b\.parquet:1: byte 1 of the text is not UTF-8"):
    texts(write_parquet(tmp_path / "b.parquet", {"text": broken}))


def test_a_truncated_parquet_file_is_named(tmp_path):
  path = write_parquet(tmp_path / "a.parquet", {"text": ["a"] * 100})
  path.write_bytes(path.read_bytes()[:-20])
  with pytest.raises(JaxchopError, match=rf"{path}: cannot be read"):
    texts(path)


@pytest.mark.parametrize("name", ["a.csv", "a", "a.txt.xz", "a.parquet.gz", "a.gz"])
def test_an_unknown_suffix_is_refused(tmp_path, name):
  with pytest.raises(UsageError, match=r"ends in \.txt, \.md, \.jsonl, \.parquet"):
    files.check_suffix(tmp_path / name)


def test_a_large_text_is_read_a_piece_at_a_time(tmp_path):
  path = tmp_path / "a.txt.gz"
  # The end is broken, and reading the beginning does not notice.
  path.write_bytes(gzip.compress(("word " * 999 + "\n\n").encode() * 4_000)[:-20])
  stream = files.texts(path, "text")
  assert next(stream)[1] == "word " * 999
  stream.close()


def test_a_line_is_read_from_json_of_any_size(tmp_path):
  path = tmp_path / "a.jsonl"
  path.write_text(json.dumps({"text": "x" * 3_000_000}))
  assert [len(text) for _, text in texts(path)] == [3_000_000]
