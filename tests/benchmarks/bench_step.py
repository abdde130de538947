"""Our training step beside transformers' torch model doing the same, by turns, on a model of SmolLM2-135M's shape.

  python tests/benchmarks/bench_step.py [--layers 30] [--rows 4] [--length 512] [--repeats 3] [--remat dots]

Each side lives in a process of its own with random weights and the same batch: forward and backward pass, the gradient
clipped to norm 1, AdamW (torch's fused one). Both sides keep what the backward pass needs; `--layout scan --remat dots`
is what recipes get that say nothing. Ours is compiled and keeps its memory as `jaxchop recover` does. On a GPU where
there is one, float32 products there as TF32 on both sides. One step of each warms up, then they alternate. Prints
medians as one JSON object: tokens per second of wall-clock and of processor time (the steadier one on a busy machine),
seconds to compile, and the most memory each process held, or its arrays on the GPU.
"""

import argparse
import json
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from jaxchop.model.config import LlamaConfig

SHAPE = LlamaConfig(
  vocab_size=49152,
  width=576,
  mlp_width=1536,
  heads=9,
  kv_heads=3,
  head_dim=64,
  norm_eps=1e-5,
  max_positions=8192,
  tied=True,
)
# A step, which returns its loss; and the peak of the device's memory so far, or None for the process's.
Step = Callable[[], float]
Peak = Callable[[], int | None]


def records(options: argparse.Namespace) -> np.ndarray:
  return np.random.default_rng(0).integers(0, SHAPE.vocab_size, (options.rows, options.length + 1), dtype=np.int32)


def our_side(options: argparse.Namespace) -> tuple[Step, float, Peak]:
  from jaxchop.heap import keep_freed_memory

  keep_freed_memory()
  import jax
  from flax import nnx

  from jaxchop.compiler import compiler_options
  from jaxchop.data.batch import batch_of
  from jaxchop.model.llama import Llama
  from jaxchop.recover.step import init_optimizer, make_step
  from jaxchop.training import RecoverConfig

  config = RecoverConfig(
    batch_size=options.rows,
    seq_len=options.length,
    layout=options.layout,
    remat=options.remat,
    compute_dtype=options.compute_dtype,
  )
  # Not under jax.jit: a GPU's compiler takes minutes over the random numbers of 30 layers.
  model = Llama(SHAPE, options.layers, rngs=nnx.Rngs(0))
  state = [model, jax.jit(lambda m: init_optimizer(config, m))(model)]
  batch = batch_of(records(options))
  began = time.monotonic()
  step_program = jax.jit(make_step(config), donate_argnums=(0, 1), compiler_options=compiler_options())
  program = step_program.lower(*state, batch).compile()
  compile_seconds = time.monotonic() - began

  def step() -> float:
    *state[:], metrics = program(*state, batch)
    return float(metrics.loss)

  return step, compile_seconds, lambda: (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")


def torch_side(options: argparse.Namespace) -> tuple[Step, float, Peak]:
  import torch
  import transformers

  device = "cuda" if torch.cuda.is_available() else "cpu"
  torch.set_float32_matmul_precision("high")
  torch.manual_seed(0)
  config = transformers.LlamaConfig(
    vocab_size=SHAPE.vocab_size,
    hidden_size=SHAPE.width,
    intermediate_size=SHAPE.mlp_width,
    num_hidden_layers=options.layers,
    num_attention_heads=SHAPE.heads,
    num_key_value_heads=SHAPE.kv_heads,
    head_dim=SHAPE.head_dim,
    max_position_embeddings=SHAPE.max_positions,
    tie_word_embeddings=True,
  )
  model = transformers.LlamaForCausalLM(config).train().to(device)
  decayed = [[p for p in model.parameters() if (p.ndim > 1) == matrix] for matrix in (True, False)]
  groups = [{"params": decayed[0], "weight_decay": 0.1}, {"params": decayed[1], "weight_decay": 0.0}]
  optimizer = torch.optim.AdamW(groups, lr=3e-4, betas=(0.9, 0.95), fused=True)
  ids = torch.from_numpy(records(options).astype(np.int64)).to(device)
  dtype = getattr(torch, options.compute_dtype)

  def step() -> float:
    with torch.autocast(device, dtype=torch.bfloat16, enabled=dtype != torch.float32):
      # transformers shifts the labels itself: reading all but the last token predicts the same ones as we do.
      logits = model(ids[:, :-1]).logits
      loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten())
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()

  return step, 0.0, lambda: torch.cuda.max_memory_allocated() if device == "cuda" else None


def serve(side: str, options: argparse.Namespace, pipe: Connection) -> None:
  """Does a step whenever asked; answers with its wall-clock and processor seconds, its loss and the peak memory."""
  step, compile_seconds, peak = {"jaxchop": our_side, "torch": torch_side}[side](options)
  pipe.send(compile_seconds)
  while pipe.recv():
    began, worked = time.monotonic(), time.process_time()
    loss = step()
    seconds = time.monotonic() - began, time.process_time() - worked
    pipe.send((*seconds, loss, peak() or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024))


def alternate(options: argparse.Namespace) -> dict[str, Any]:
  """Returns the medians of both sides and how much faster ours is."""
  spawn = multiprocessing.get_context("spawn")
  pipes, compiled, seen = {}, {}, {"torch": [], "jaxchop": []}
  for side in seen:
    pipes[side], theirs = spawn.Pipe()
    spawn.Process(target=serve, args=(side, options, theirs), daemon=True).start()
    compiled[side] = pipes[side].recv()
  for repeat in range(1 + options.repeats):
    for side, pipe in pipes.items():
      pipe.send(True)
      answer = pipe.recv()
      if repeat:
        seen[side].append(answer)
  for pipe in pipes.values():
    pipe.send(False)
  tokens = options.rows * options.length
  result: dict[str, Any] = {"options": vars(options)}
  for side, answers in seen.items():
    wall, cpu = (statistics.median(answer[i] for answer in answers) for i in (0, 1))
    result[side] = {
      "tokens_per_second": tokens / wall,
      "tokens_per_processor_second": tokens / cpu,
      "compile_seconds": compiled[side],
      "peak_bytes": answers[-1][3],
      "loss": answers[-1][2],
    }
  for what in ("tokens_per_second", "tokens_per_processor_second"):
    result[f"{what}_ratio"] = result["jaxchop"][what] / result["torch"][what]
  return result


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--layers", type=int, default=30)
  parser.add_argument("--rows", type=int, default=4)
  parser.add_argument("--length", type=int, default=512)
  parser.add_argument("--repeats", type=int, default=3)
  parser.add_argument("--layout", choices=["scan", "unrolled"], default="unrolled")
  parser.add_argument("--compute_dtype", choices=["float32", "bfloat16"], default="float32")
  parser.add_argument("--remat", default="none")
  print(json.dumps(alternate(parser.parse_args()), indent=2))


if __name__ == "__main__":
  main()
