import itertools
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxchop.data import pack as packing
from jaxchop.data.loader import Loader, Order
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


@given(st.integers(1, 400), st.integers(0, 2**63 - 1), st.integers(0, 1000))
def test_an_epoch_reads_every_record_exactly_once(records, seed, epoch):
  order = Order(records=records, seed=seed)
  assert sorted(order(np.arange(records) + epoch * records)) == list(range(records))


@given(st.integers(1, 50), st.lists(st.integers(0, 10_000), min_size=1, max_size=20))
def test_the_record_at_a_position_does_not_depend_on_what_else_is_asked(records, positions):
  order = Order(records=records, seed=1)
  assert [order(np.array([p]))[0] for p in positions] == order(np.array(positions)).tolist()


def test_the_order_differs_by_epoch_and_seed_and_looks_random():
  first, second, other = (
    Order(records=1000, seed=seed)(np.arange(1000) + start) for seed, start in ((0, 0), (0, 1000), (1, 0))
  )
  for a, b in itertools.combinations((first, second, other, np.arange(1000)), 2):
    # Two random permutations agree in 1 place on average, and their correlation is below 0.1 but once in 600.
    assert np.sum(a == b) < 8 and abs(np.corrcoef(a, b)[0, 1]) < 0.1


def test_the_order_never_changes():
  """A run is resumed by a later version: these numbers are a promise."""
  assert Order(records=10, seed=0)(np.arange(20)).tolist() == [
    5,
    2,
    3,
    4,
    9,
    1,
    7,
    0,
    8,
    6,
    1,
    0,
    9,
    3,
    5,
    8,
    4,
    6,
    2,
    7,
  ]
  assert Order(records=3_000_000_000, seed=7)(np.arange(3)).tolist() == [2225059144, 401118740, 489606041]


def test_a_batch_holds_the_records_its_indices_name(packed):
  stored = [row["tokens"] for row in tfds.builder_from_directory(str(packed.path)).as_data_source("train")]
  loader, rows = Loader(packed, batch_size=5, seed=3), np.arange(5)
  for step in (0, 7, 4):
    batch = loader.batch(step, rows)
    assert batch.ids.dtype == np.int32 and batch.ids.shape == (5, 13)
    assert batch.weight.dtype == np.float32 and batch.weight.shape == (5, 12) and (batch.weight == 1).all()
    assert np.array_equal(batch.ids, np.array(stored)[loader.indices(step, rows)]) and batch.segments is None
  loader.close()


def test_batches_run_across_epochs_and_drop_nothing(packed):
  loader = Loader(packed, batch_size=4, seed=0)
  seen = np.concatenate([loader.indices(step, np.arange(4)) for step in range(13)])
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
        seen += Loader(packed, batch_size=4, seed=5).indices(step, rows).tolist()
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


@pytest.mark.parametrize("ending", ["", "batches.close()", "raise SystemExit(3)"])
def test_a_program_ends_without_noise_while_batches_are_read_ahead(packed, ending):
  program = f"""
import warnings
import numpy
warnings.simplefilter("error")
from pathlib import Path
from jaxchop.data.loader import Loader
from jaxchop.data.packed import open_packed
batches = Loader(open_packed(Path({str(packed.path)!r})), batch_size=4, seed=0).from_step(2, numpy.arange(4))
next(batches)
{ending}
"""
  done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
  assert (done.returncode, done.stdout, done.stderr) == (3 if "3" in ending else 0, "", "")
