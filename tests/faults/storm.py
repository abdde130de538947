"""Kills a tiny recovery again and again at random moments, and says what became of it.

`python storm.py FOLDER KILLS SEED` prints one JSON object; FOLDER/calm is the run that nobody kills. What takes seconds
to import is imported once: an attempt is a fork that has not touched a device yet.
"""

import json
import os
import random
import signal
import sys
import time
import warnings
from pathlib import Path

import tiny_run

from jaxchop.recover.loop import recover

# A save is on its way most of the time.
CHANGES = {"steps": 40, "checkpoint_every": 2}


def train(folder: Path) -> None:
  """Trains to the end, in this process."""
  settings = tiny_run.settings(**CHANGES)
  recover(tiny_run.tiny_model(), tiny_run.Records(), settings, folder, meta={"data": "count"})


def attempt(folder: Path, seconds: float | None) -> int:
  """Returns how a process ended that was killed after so many seconds: its signal as a negative number, or its code."""
  with warnings.catch_warnings():
    # JAX warns of forks; no device has been asked for here, so there is no thread of its own yet.
    warnings.simplefilter("ignore")
    pid = os.fork()
  if pid == 0:
    code = 1
    try:
      train(folder)
      code = 0
    finally:
      os._exit(code)
  end = None if seconds is None else time.monotonic() + seconds
  while end is None or time.monotonic() < end:
    done, status = os.waitpid(pid, os.WNOHANG if end is not None else 0)
    if done:
      return os.waitstatus_to_exitcode(status)
    time.sleep(0.002)
  os.kill(pid, signal.SIGKILL)
  return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def main(folder: str, kills: str, seed: str) -> None:
  draw, path = random.Random(int(seed)), Path(folder)
  found = {"kills": 0, "in_save": 0, "finished_before": 0, "failed": 0}
  assert attempt(path / "calm", None) == 0
  # The same again, with its programs compiled: as long as a process may live here, however busy the machine.
  began = time.monotonic()
  assert attempt(path / "timed", None) == 0
  whole = time.monotonic() - began
  run = 0
  while found["kills"] < int(kills):
    code = attempt(path / str(run), draw.uniform(0.1, whole))
    if code == -signal.SIGKILL:
      found["kills"] += 1
      found["in_save"] += any((path / str(run) / "checkpoints").glob("*.saving"))
    elif code == 0:
      # The run has come to its end: the next one begins.
      found["finished_before"] += 1
      run += 1
    else:
      found["failed"] += 1
      break
  found["last"] = attempt(path / str(run), None)
  print(json.dumps(found | {"runs": run + 1}))


if __name__ == "__main__":
  main(*sys.argv[1:])
