"""Our greedy generation beside transformers' `generate` on the same Hugging Face folder, by turns in one run.

  python tests/benchmarks/bench_decode.py [--batch 1 8] [--prompt_tokens 128] [--new_tokens 64] [--repeats 5]

Both sides read SmolLM2-135M in float32 from one folder, each in a process of its own, on the GPU where there is one
(float32 products there as TF32 on both sides), and continue the same held-out text. A turn is two calls of `generate`
with EOS forbidden: one new token, which is the prompt's price, and all of them; the difference is decoding. One turn
of each side warms up and compiles. Prints one JSON object: medians of tokens per second of all rows, decoding alone and
end to end, by wall clock and by processor time (the steadier one on a busy machine), the ratio of ours to torch's with
the lowest and highest of any one turn, the bytes of weights that a step reads against the seconds it takes, and how
many of the rows are the same. Where others use the machine too, pin it to a core (`taskset -c 0 python …`): torch's
threads wait for one another at every product.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

# Continues all prompts by that many tokens.
Generate = Callable[[np.ndarray, int], list[list[int]]]


def prompts(options: argparse.Namespace, rows: int) -> np.ndarray:
  from jaxchop.config import DataConfig
  from jaxchop.data.texts import read_splits
  from jaxchop.data.windows import first_windows
  from jaxchop.subject import Subject

  subject = Subject("builtin")
  return first_windows(
    read_splits(DataConfig()).held_out, subject.tokenizer, count=rows, length=options.prompt_tokens, eos=subject.eos[0]
  )


def ours(folder: str) -> Generate:
  from jaxchop.model.generate import generate
  from jaxchop.subject import Subject

  model = Subject(folder).load()
  return lambda ids_BT, count: generate(model, ids_BT.tolist(), max_new_tokens=count)


def theirs(folder: str) -> Generate:
  import torch
  import transformers

  device = "cuda" if torch.cuda.is_available() else "cpu"
  torch.set_float32_matmul_precision("high")
  model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval().to(device)

  def run(ids_BT: np.ndarray, count: int) -> list[list[int]]:
    ids = torch.from_numpy(ids_BT.astype(np.int64)).to(device)
    lengths = {"min_new_tokens": count, "max_new_tokens": count}
    found = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, pad_token_id=0, **lengths)
    return found[:, ids.shape[1] :].tolist()

  return run


SIDES = {"torch": theirs, "jaxchop": ours}


def serve(side: str, options: argparse.Namespace, folder: str, pipe: Connection) -> None:
  """Takes a turn whenever it is sent a number of rows; answers with seconds, processor seconds, and the tokens."""
  run, texts = SIDES[side](folder), prompts(options, max(options.batch))
  pipe.send(None)
  while rows := pipe.recv():
    spent = []
    for count in (1, options.new_tokens + 1):
      began, worked = time.monotonic(), time.process_time()
      tokens = run(texts[:rows], count)
      spent.append((time.monotonic() - began, time.process_time() - worked))
    pipe.send((*spent, tokens))


def in_turn(options: argparse.Namespace, folder: str) -> dict[str, Any]:
  spawn, pipes = multiprocessing.get_context("spawn"), {}
  for side in SIDES:
    pipes[side], far = spawn.Pipe()
    spawn.Process(target=serve, args=(side, options, folder, far), daemon=True).start()
    pipes[side].recv()
  seen: dict[int, dict[str, list[Any]]] = {rows: {side: [] for side in SIDES} for rows in options.batch}
  for turn in range(1 + options.repeats):
    for rows, answers in seen.items():
      for side, pipe in pipes.items():
        pipe.send(rows)
        answer = pipe.recv()
        one, whole, _ = answer
        print(f"turn {turn}, batch {rows}, {side}: {one[0]:.2f} s, {whole[0]:.2f} s", file=sys.stderr, flush=True)
        if turn:
          answers[side].append(answer)
  for pipe in pipes.values():
    pipe.send(0)
  weights = (Path(folder) / "model.safetensors").stat().st_size
  return {
    "options": vars(options),
    "load": os.getloadavg(),
    "batch": {rows: compared(options, rows, answers, weights) for rows, answers in seen.items()},
  }


def compared(options: argparse.Namespace, rows: int, answers: dict[str, list[Any]], weights: int) -> dict[str, Any]:
  """Returns the medians of both sides for one number of rows, and how many times faster ours is."""
  result: dict[str, Any] = {}
  for what, clock, first, count in (
    ("decode_tokens_per_second", 0, True, options.new_tokens),
    ("decode_tokens_per_processor_second", 1, True, options.new_tokens),
    ("end_to_end_tokens_per_second", 0, False, options.new_tokens + 1),
  ):
    taken = {side: [whole[clock] - first * one[clock] for one, whole, _ in seen] for side, seen in answers.items()}
    medians = {side: rows * count / statistics.median(seconds) for side, seconds in taken.items()}
    ratios = [torch / own for torch, own in zip(taken["torch"], taken["jaxchop"], strict=True)]
    ratio = {"ratio": medians["jaxchop"] / medians["torch"], "of_one_turn": [min(ratios), max(ratios)]}
    result[what] = medians | ratio
  step = rows / result["decode_tokens_per_second"]["jaxchop"]
  result["weight_gigabytes_per_second"] = weights / step / 1e9
  result["same_tokens"] = agreement(*(seen[-1][2] for seen in answers.values()))
  return result


def agreement(a: Sequence[Sequence[int]], b: Sequence[Sequence[int]]) -> float:
  """Returns the share of rows whose tokens are all the same."""
  return statistics.fmean(x == y for x, y in zip(a, b, strict=True))


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
  parser.add_argument("--prompt_tokens", type=int, default=128)
  parser.add_argument("--new_tokens", type=int, default=64)
  parser.add_argument("--repeats", type=int, default=5)
  options = parser.parse_args()

  from jaxchop.hub.rewrite import prune_checkpoint
  from jaxchop.subject import Subject

  with tempfile.TemporaryDirectory() as folder:
    out, checkpoint = Path(folder) / "whole", Subject("builtin").checkpoint
    prune_checkpoint(checkpoint, range(checkpoint.layers), out, dtype="float32", readme="", provenance={})
    print(json.dumps(in_turn(options, str(out)), indent=2))


if __name__ == "__main__":
  main()
