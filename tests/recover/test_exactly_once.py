"""Every sample is read exactly once, in one order, over interruptions and on whatever devices."""

import dataclasses
import signal
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_run
from byte_tokens import build

from jaxchop.data.batch import Batch
from jaxchop.data.loader import Loader
from jaxchop.data.pack import pack
from jaxchop.data.packed import Packed
from jaxchop.errors import Interrupted
from jaxchop.recover.loop import recover
from jaxchop.training import MeshConfig

CONFIG = dataclasses.replace(tiny_run.CONFIG, vocab_size=257)


class Logged(Loader):
  """Notes what each step was given, and sends SIGINT to this process while the batch of `at` is read."""

  def __init__(self, packed: Packed, at: int = -1):
    super().__init__([packed], batch_size=4, seed=3)
    self.at, self.given = at, dict[int, list[bytes]]()

  def from_step(self, step: int, rows: np.ndarray) -> Generator[Batch, None, None]:
    for number, batch in enumerate(super().from_step(step, rows), start=step):
      if number == self.at:
        signal.raise_signal(signal.SIGINT)
      self.given[number] = [row.tobytes() for row in batch.ids]
      yield batch


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Packed:
  folder = tmp_path_factory.mktemp("cache") / "data"
  drawn = np.random.default_rng(0)
  text = ["".join(chr(97 + letter) for letter in drawn.integers(0, 26, 90)) for _ in range(40)]
  return pack(text, build(), seq_len=12, out=folder, eos=256)


def test_samples_are_an_exact_prefix_over_restarts_and_devices(packed: Packed, tmp_path: Path) -> None:
  given: dict[int, list[bytes]] = {}
  stops: list[tuple[int, Any]] = [(3, {"fsdp": 4}), (8, {"fsdp": 1}), (12, {"data": 2, "fsdp": 1}), (-1, {"fsdp": 4})]
  for at, mesh in stops:
    loader = Logged(packed, at)
    model, settings = tiny_run.tiny_model(config=CONFIG), tiny_run.settings(mesh=MeshConfig(**mesh))
    try:
      done = recover(model, loader, settings, tmp_path)
      assert done.steps == 20
    except Interrupted:
      assert at >= 0
    # What a restart reads again, it reads in place of what was not kept.
    given = {step: rows for step, rows in given.items() if step < min(loader.given)} | loader.given
  whole = Loader([packed], batch_size=4, seed=3)
  wanted = [row.tobytes() for step in range(20) for row in whole.batch(step, np.arange(4)).ids]
  read = [row for step in range(20) for row in given[step]]
  assert read == wanted
  assert packed.records > len(read) == len(set(read)) == 80
