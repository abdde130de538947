import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxchop.data import pack as packing
from jaxchop.data.loader import Loader
from jaxchop.data.pack import pack
from jaxchop.data.sources import Document
from jaxchop.errors import UsageError


@pytest.fixture(scope="module")
def packed(tmp_path_factory, byte_tokenizer):
  """25 records in several shards."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(packing, "SHARD_BYTES", 200)
    found = pack(
      [Document("a:1", "".join(map(chr, range(50, 250))))],
      byte_tokenizer,
      seq_len=12,
      out=tmp_path_factory.mktemp("packed"),
      eos=256,
    )
  assert found.records == 26 and len(found.shards) == 4
  return found


def test_a_batch_holds_the_records_its_indices_name(packed):
  stored = [row["tokens"] for row in tfds.builder_from_directory(str(packed.path)).as_data_source("train")]
  loader, rows = Loader(packed, batch_size=5, seed=3), np.arange(5)
  for step in (0, 7, 4):
    batch = loader.batch(step, rows)
    assert batch.ids.dtype == np.int32 and batch.ids.shape == (5, 13)
    assert batch.weight.dtype == np.float32 and batch.weight.shape == (5, 12) and (batch.weight == 1).all()
    assert np.array_equal(batch.ids, np.array(stored)[loader.indices(step, rows)[1]]) and batch.segments is None
  loader.close()


def test_batches_run_across_epochs_and_drop_nothing(packed):
  loader = Loader(packed, batch_size=4, seed=0)
  seen = np.concatenate([loader.indices(step, np.arange(4))[1] for step in range(13)])
  assert sorted(seen[:26]) == sorted(seen[26:52]) == list(range(26))


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 30))
def test_reading_from_any_step_gives_the_same_batches(packed, start):
  loader, rows = Loader(packed, batch_size=3, seed=0), np.arange(3)
  batches = loader.from_step(start, rows)
  for step in range(start, start + 12):
    assert np.array_equal(next(batches).ids, loader.batch(step, rows).ids)
  batches.close()
  loader.close()


@given(st.lists(st.integers(0, 5), min_size=1, max_size=8), st.integers(0, 99))
def test_any_rows_are_those_of_the_whole_batch(packed, rows, step):
  loader = Loader(packed, batch_size=6, seed=0)
  whole = loader.batch(step, np.arange(6))
  assert np.array_equal(loader.batch(step, np.array(rows)).ids, whole.ids[rows])


def test_each_record_is_read_once_over_restarts_on_other_numbers_of_processes(packed):
  seen = []
  for start, stop, processes in ((0, 3, 1), (3, 7, 2), (7, 8, 4), (8, 13, 1)):
    for step in range(start, stop):
      for rows in np.split(np.arange(4), processes):
        seen += Loader(packed, batch_size=4, seed=5).indices(step, rows)[1].tolist()
  assert sorted(seen) == sorted([*range(26), *range(26)])


@pytest.mark.parametrize(
  ("change", "message"),
  [({"batch_size": 0}, "batch size 0"), ({"seed": -1}, "seed is -1"), ({"seed": 2**63}, "seed is")],
)
def test_impossible_settings_are_refused(packed, change, message):
  with pytest.raises(UsageError, match=message):
    Loader(packed, **{"batch_size": 4, "seed": 0, **change})


@pytest.mark.parametrize(
  ("step", "rows", "message"), [(-1, [0], "step is -1"), (0, [3, 4], r"rows 3\.\.4: .* 0\.\.3"), (0, [-1], "rows -1")]
)
def test_batches_outside_the_run_are_refused(packed, step, rows, message):
  with pytest.raises(UsageError, match=message):
    Loader(packed, batch_size=4, seed=0).batch(step, np.array(rows))


@pytest.fixture(scope="module")
def other(tmp_path_factory, byte_tokenizer):
  """11 records that say where documents end."""
  texts = [Document(f"b:{n}", "b" * 9) for n in range(14)]
  out = tmp_path_factory.mktemp("other")
  return pack(texts, byte_tokenizer, seq_len=12, out=out, eos=256, segments=True)


def test_corpora_are_mixed_row_by_row(packed, other):
  loader, rows = Loader([packed, other], batch_size=8, seed=0, weights={0: (1, 1), 3: (0, 1)}), np.arange(8)
  alone = Loader(packed, batch_size=4, seed=0)
  for step in range(5):
    batch, (corpus_N, _) = loader.batch(step, rows), loader.indices(step, rows)
    assert corpus_N.tolist().count(0) == (4 if step < 3 else 0)
    if step < 3:
      # What the first corpus gives is what it would give alone.
      assert np.array_equal(batch.ids[corpus_N == 0], alone.batch(step, np.arange(4)).ids)
    assert (batch.segments[corpus_N == 0] == 1).all() and (batch.weight[corpus_N == 0] == 1).all()
    assert (batch.segments[corpus_N == 1] > 1).any()
    first_N = np.diff(batch.segments) == 1
    assert (batch.weight == np.where(first_N, 0, 1)).all()
  assert loader.epochs(3) == [12 / 26, 12 / other.records]


def test_corpora_without_weights_are_read_equally_often(packed, other):
  loader = Loader([packed, other], batch_size=packed.records + other.records, seed=0)
  assert loader.epochs(1) == [1, 1]


def test_corpora_that_do_not_go_together_are_refused(packed, tmp_path, byte_tokenizer):
  longer = pack(["long " * 20], byte_tokenizer, seq_len=20, out=tmp_path, eos=256)
  with pytest.raises(UsageError, match=r"records of \[12, 20\] tokens: pack them with the same seq_len"):
    Loader([packed, longer], batch_size=4, seed=0)
  for weights in ({5: (1,)}, {0: (1, 1)}):
    with pytest.raises(UsageError, match=r"data\.weights: begin with step 0 and give every corpus a weight"):
      Loader(packed, batch_size=4, seed=0, weights=weights)


NOISELESS = """
import sys, warnings
warnings.simplefilter("error")
import numpy
from pathlib import Path
from jaxchop.data.loader import Loader
from jaxchop.data.packed import open_packed

def main(folder, workers, ending):
  rows = numpy.arange(4)
  loader = Loader(open_packed(Path(folder)), batch_size=4, seed=0, workers=int(workers))
  batches = loader.from_step(2, rows)
  for step in range(2, 7):
    assert numpy.array_equal(next(batches).ids, loader.batch(step, rows).ids)
  print("read", flush=True)
  if ending == "wait":
    sys.stdin.read()
  if ending == "close":
    batches.close()
  if ending == "exit":
    raise SystemExit(3)
  return batches

if __name__ == "__main__":
  left = main(*sys.argv[1:])
"""


@pytest.fixture
def program(tmp_path, packed):
  """Starts the program above with some workers and one of its endings."""
  path = tmp_path / "program.py"
  path.write_text(NOISELESS)

  def start(workers, ending):
    command = [sys.executable, str(path), str(packed.path), str(workers), ending]
    return subprocess.Popen(
      command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )

  return start


@pytest.mark.parametrize(("workers", "ending"), [(0, ""), (0, "close"), (0, "exit"), (2, "")])
def test_a_program_ends_without_noise_while_batches_are_read_ahead(program, workers, ending):
  process = program(workers, ending)
  assert (*process.communicate(), process.returncode) == ("read\n", "", 3 if ending == "exit" else 0)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks for processes in /proc")
def test_a_killed_program_leaves_nothing_of_its_processes(program):
  shared = set(Path("/dev/shm").iterdir())
  process = program(2, "wait")
  assert process.stdout.readline() == "read\n"
  threads = Path(f"/proc/{process.pid}/task").iterdir()
  children = [child for thread in threads for child in (thread / "children").read_text().split()]
  assert len(children) >= 2
  process.kill()
  process.communicate()
  deadline = time.monotonic() + 60
  while left := [pid for pid in children if Path(f"/proc/{pid}").exists()]:
    assert time.monotonic() < deadline, left
    time.sleep(0.1)
  # Of names like these, Grain's shared memory is.
  assert not [path for path in set(Path("/dev/shm").iterdir()) - shared if path.name.startswith("psm_")]
