"""A tiny recovery, as a library for the tests beside it and as a program whose end they bring about.

`python tiny_run.py FOLDER [SIGNAL STEP [MESH [KEEP]]]` trains, and the last of its processes sends itself SIGNAL while
STEP's batch is being read.
"""

import json
import logging
import os
import signal
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from jaxchop.data.batch import Batch, batch_of
from jaxchop.errors import JaxchopError
from jaxchop.model.config import LlamaConfig
from jaxchop.model.llama import Llama
from jaxchop.parallel.hosts import joined
from jaxchop.recover.loop import recover
from jaxchop.training import MeshConfig, OptimizerConfig, RecoverConfig

CONFIG = LlamaConfig(
  vocab_size=61, width=16, mlp_width=24, heads=4, kv_heads=2, head_dim=6, norm_eps=1e-5, max_positions=64, tied=True
)


def tiny_model(layers: int = 3, seed: int = 0, config: LlamaConfig = CONFIG) -> Llama:
  return Llama(config, layers, rngs=nnx.Rngs(seed))


def settings(**changes: Any) -> RecoverConfig:
  optimizer = OptimizerConfig(learning_rate=1e-2, warmup_steps=4)
  given = {"steps": 20, "seq_len": 12, "checkpoint_every": 5, "optimizer": optimizer, "mesh": MeshConfig(fsdp=1)}
  return RecoverConfig(**{**given, **changes})


def records(step: int, rows: int = 4, size: int = 13) -> np.ndarray:
  """The batch of a step: sequences that count upwards, so that there is something to learn."""
  start = np.random.default_rng(step).integers(0, CONFIG.vocab_size, (rows, 1))
  return ((start + np.arange(size)) % CONFIG.vocab_size).astype(np.int32)


class Records:
  """Batches without end, which send `number` to this process while the batch of `at` is read; None ends them there."""

  segments = False

  def __init__(self, number: int | None = 0, at: int = -1):
    self.number, self.at = number, at

  def from_step(self, step: int, rows: np.ndarray) -> Generator[Batch, None, None]:
    while True:
      if step == self.at and self.number is None:
        return
      if step == self.at:
        os.kill(os.getpid(), self.number)
      yield batch_of(records(step)[rows])
      step += 1


def main(folder: str, number: str = "0", at: str = "-1", mesh: str = '{"fsdp": 1}', keep: str = "2") -> int:
  logging.basicConfig(level=logging.INFO, stream=sys.stderr, force=True)
  sent = {"0": 0, "NONE": None}
  number = sent[number] if number in sent else signal.Signals[number]
  config = settings(mesh=MeshConfig(**json.loads(mesh)), keep_checkpoints=int(keep))
  try:
    with joined({"recover.steps": config.steps}, float(os.environ.get("WAIT", 60))) as hosts:
      batches = Records(number, int(at)) if hosts.index == hosts.count - 1 else Records()
      recover(tiny_model(), batches, config, Path(folder), meta={"data": "count"}, hosts=hosts)
  except JaxchopError as error:
    print(error, file=sys.stderr)
    return error.exit_code
  return 0


if __name__ == "__main__":
  sys.exit(main(*sys.argv[1:]))
