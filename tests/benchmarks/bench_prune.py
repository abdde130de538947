"""Time and peak memory of prune_checkpoint on a generated checkpoint of 13.5 GB, beside a plain copy of the same files.

  python tests/benchmarks/bench_prune.py FOLDER [--rounds 3]

Writes the checkpoint to FOLDER if it is not there (as bench_load.py does), then runs in turn, each in a fresh process:
`copy` (shutil.copyfile and fsync of every file), `identity` (a prune that keeps all layers, so as many bytes as the
copy) and `drop` (a prune without the last quarter of the layers). Prints one JSON object: medians of seconds, of
processor seconds and of megabytes written a second, the highest peak memory, and the ratio of seconds to the copy's.
Results go to FOLDER.bench and are removed. A busy machine slows the prune, which hashes, more than the copy.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

from bench_load import generate, peak_bytes


def copy(folder: Path, out: Path) -> None:
  out.mkdir()
  for file in folder.iterdir():
    shutil.copyfile(file, out / file.name)
    with (out / file.name).open("rb") as stream:
      os.fsync(stream.fileno())


def prune(folder: Path, out: Path, share: float) -> None:
  from jaxchop.hub.load import open_checkpoint
  from jaxchop.hub.rewrite import prune_checkpoint

  checkpoint = open_checkpoint(str(folder))
  keep = range(round(checkpoint.layers * share))
  prune_checkpoint(checkpoint, keep, out, readme="", provenance={})


WAYS = {
  "copy": copy,
  "identity": lambda folder, out: prune(folder, out, 1.0),
  "drop": lambda folder, out: prune(folder, out, 0.75),
}


def measure(folder: Path, way: str) -> dict[str, float]:
  out = folder.with_name(folder.name + ".bench")
  start, spent = time.perf_counter(), time.process_time()
  WAYS[way](folder, out)
  seconds, spent = time.perf_counter() - start, time.process_time() - spent
  size = sum(file.stat().st_size for file in out.iterdir())
  shutil.rmtree(out)
  speed = {"seconds": seconds, "processor_seconds": spent, "megabytes_per_second": size / seconds / 1e6}
  return speed | {"peak_megabytes": peak_bytes() / 1e6}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("folder", type=Path)
  parser.add_argument("--rounds", type=int, default=3)
  parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
  settings = parser.parse_args()
  if settings.way:
    print(json.dumps(measure(settings.folder, settings.way)))
    return
  if not (settings.folder / "config.json").exists():
    generate(settings.folder)
  runs: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
  for _ in range(settings.rounds):
    for way, results in runs.items():
      command = [sys.executable, __file__, str(settings.folder), "--way", way]
      results.append(json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout))
  summary = {}
  for way, results in runs.items():
    middle = {key: round(statistics.median(run[key] for run in results), 2) for key in results[0]}
    middle["peak_megabytes"] = round(max(run["peak_megabytes"] for run in results))
    summary[way] = middle | {"all_seconds": [round(run["seconds"], 2) for run in results]}
  for result in summary.values():
    result["ratio_to_copy"] = round(result["seconds"] / summary["copy"]["seconds"], 2)
  print(json.dumps(summary, indent=2))


if __name__ == "__main__":
  main()
