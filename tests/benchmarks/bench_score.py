"""Leaving one layer out of SmolLM2: our sweep beside rebuilding each candidate, in our stack and over torch.

  python tests/benchmarks/bench_score.py [--windows 4] [--length 256] [--repeats 1] [--again]

All sides score the same calibration tokens in turn, each in a process of its own: `sweep`, our leave-one-out with a
shared prefix; `rebuilt`, each candidate cut from the list and run whole by the same jitted program; `torch`, the same
loop over transformers' model with its layer list cut; `all`, every criterion but runs and greedy rounds in one call of
`score`; on a GPU where there is one, float32 products there as TF32 on all sides. Compilation counts: it is part of
what a person waits for; --again leaves the first turn, which compiles, out. Prints one JSON object: median seconds,
ratios, the most memory each process held, and the largest difference between the sides' perplexities.
"""

import argparse
import json
import multiprocessing
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

Sweep = Callable[[], list[float]]
_COSTLY = ("perplexity_run", "perplexity_greedy")


def windows(options: argparse.Namespace) -> np.ndarray:
  from jaxchop.config import DataConfig
  from jaxchop.data.texts import read_splits
  from jaxchop.data.windows import first_windows
  from jaxchop.subject import Subject

  subject, texts = Subject("builtin"), read_splits(DataConfig())
  found = first_windows(
    texts.calibration, subject.tokenizer, count=options.windows, length=options.length, eos=subject.eos[0]
  )
  return found


def scored(options: argparse.Namespace, *criteria: str) -> Sweep:
  from jaxchop.config import ScoreConfig
  from jaxchop.prune.score import score
  from jaxchop.subject import Subject

  ids_NT, model = windows(options), Subject("builtin").load()
  settings = ScoreConfig(windows=options.windows, window=options.length)
  return lambda: list(score(model, ids_NT, criteria, settings)["perplexity"].per_layer)


def sweep(options: argparse.Namespace) -> Sweep:
  return scored(options, "perplexity")


def everything(options: argparse.Namespace) -> Sweep:
  from jaxchop.prune.criteria import DEFINITIONS

  return scored(options, *(name for name in DEFINITIONS if name not in _COSTLY))


def rebuilt(options: argparse.Namespace) -> Sweep:
  from jaxchop.evaluate.perplexity import window_nll
  from jaxchop.prune.surgery import keep_layers
  from jaxchop.subject import Subject

  ids_NT, model = windows(options), Subject("builtin").load()
  weight_NT = np.full((len(ids_NT), ids_NT.shape[1] - 1), 1 / (ids_NT.shape[1] - 1), np.float32)

  def without(out: int) -> float:
    small = keep_layers(model, [layer for layer in range(len(model.layers)) if layer != out])
    return float(np.exp(window_nll(small, ids_NT[:, :-1], ids_NT[:, 1:], weight_NT).mean()))

  def run() -> list[float]:
    return [without(out) for out in range(len(model.layers))]

  return run


def torch_loop(options: argparse.Namespace) -> Sweep:
  import torch
  import transformers

  from jaxchop.hub.rewrite import prune_checkpoint
  from jaxchop.subject import Subject

  device = "cuda" if torch.cuda.is_available() else "cpu"
  torch.set_float32_matmul_precision("high")
  with tempfile.TemporaryDirectory() as folder:
    out, keep = Path(folder) / "whole", range(30)
    prune_checkpoint(Subject("builtin").checkpoint, keep, out, dtype="float32", readme="", provenance={})
    model = transformers.AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval().to(device)
  ids = torch.from_numpy(windows(options).astype(np.int64)).to(device)

  def run() -> list[float]:
    whole, found = model.model.layers, []
    for out in range(len(whole)):
      model.model.layers = torch.nn.ModuleList(layer for n, layer in enumerate(whole) if n != out)
      with torch.no_grad():
        found.append(float(torch.exp(model(ids, labels=ids, use_cache=False).loss)))
    model.model.layers = whole
    return found

  return run


SIDES = {"sweep": sweep, "rebuilt": rebuilt, "torch": torch_loop, "all": everything}


def serve(side: str, options: argparse.Namespace, pipe: Connection) -> None:
  """Sweeps whenever asked; answers with seconds, peak memory and perplexities."""
  run = SIDES[side](options)
  pipe.send(None)
  while pipe.recv():
    began = time.monotonic()
    found = run()
    pipe.send((time.monotonic() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, found))


def in_turn(options: argparse.Namespace) -> dict[str, Any]:
  spawn, pipes = multiprocessing.get_context("spawn"), {}
  seen: dict[str, list[Any]] = {side: [] for side in SIDES}
  for side in SIDES:
    pipes[side], theirs = spawn.Pipe()
    spawn.Process(target=serve, args=(side, options, theirs), daemon=True).start()
    pipes[side].recv()
  for turn in range(options.repeats + options.again):
    for side, pipe in pipes.items():
      pipe.send(True)
      answer = pipe.recv()
      if turn or not options.again:
        seen[side].append(answer)
  for pipe in pipes.values():
    pipe.send(False)
  seconds = {side: statistics.median(answer[0] for answer in answers) for side, answers in seen.items()}
  values = np.array([answers[0][2] for answers in seen.values()])
  return {
    "options": vars(options),
    "seconds": seconds,
    "peak_bytes": {side: answers[-1][1] for side, answers in seen.items()},
    "rebuilt_over_sweep": seconds["rebuilt"] / seconds["sweep"],
    "torch_over_sweep": seconds["torch"] / seconds["sweep"],
    "torch_over_all": seconds["torch"] / seconds["all"],
    "largest_relative_difference": float(np.max(np.ptp(values, axis=0) / values[0])),
  }


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--windows", type=int, default=4)
  parser.add_argument("--length", type=int, default=256)
  parser.add_argument("--repeats", type=int, default=1)
  parser.add_argument("--again", action="store_true")
  print(json.dumps(in_turn(parser.parse_args()), indent=2))


if __name__ == "__main__":
  main()
