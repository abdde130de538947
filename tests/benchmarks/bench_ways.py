"""Each way to train beside training everything, by turns, on a model of SmolLM2-135M's shape.

  python tests/benchmarks/bench_ways.py [--layers 24] [--rows 4] [--length 256] [--repeats 3] [--ways lora dora]

Every way is a process of its own with random weights and the same batch, compiled and keeping its memory as `jaxchop
recover` does; where there is a teacher, it has 30 layers. One step warms up, then it takes turns with a process that
trains everything. Prints one JSON object: medians of the seconds a step, their ratio to training everything in the same
turns, operations by formula as the same ratio, what the optimizer and the process hold, and seconds to compile.
"""

import argparse
import json
import multiprocessing
import resource
import statistics
import sys
import time
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from bench_step import SHAPE

WHOLE = 30
# By name: settings of recover.
WAYS: dict[str, dict[str, Any]] = {
  "all": {},
  "norm, head and last 1": {"trainable": "partial", "partial": {"last": 1}},
  "norm, head and last 2": {"trainable": "partial", "partial": {"last": 2}},
  "norm, head and last 3": {"trainable": "partial", "partial": {"last": 3}},
  "lora": {"trainable": "lora"},
  "dora": {"trainable": "dora"},
  "qlora": {"trainable": "qlora"},
  "logits": {"distill": {"weight": 0.5}},
  "logits and states": {"distill": {"weight": 0.5, "hidden": 1.0}},
  "cached": {"distill": {"weight": 0.5, "cache_top": 64}},
  "replacement": {"trainable": "partial", "partial": {"last": 0, "layers": "12", "norm": False, "head": False}},
  "fading": {},
}


def serve(name: str, options: argparse.Namespace, pipe: Connection) -> None:
  """Answers with the facts of a way, then with the seconds of a step whenever asked."""
  from jaxchop.heap import keep_freed_memory

  keep_freed_memory()
  import jax
  from flax import nnx

  from jaxchop.compiler import compiler_options
  from jaxchop.data.batch import batch_of
  from jaxchop.model.llama import Llama
  from jaxchop.prune.surgery import keep_layers
  from jaxchop.recover.fading import Fading
  from jaxchop.recover.step import init_optimizer, make_step
  from jaxchop.recover.teacher import beside, stands_beside
  from jaxchop.recover.trainable import way_of
  from jaxchop.training import AdapterConfig, DistillConfig, PartialConfig, RecoverConfig

  given = WAYS[name]
  config = RecoverConfig(
    trainable=given.get("trainable", "all"),
    partial=PartialConfig(**given.get("partial", {})),
    adapter=AdapterConfig(),
    distill=DistillConfig(**given.get("distill", {})),
    batch_size=options.rows,
    seq_len=options.length,
    layout=options.layout,
    remat=options.remat,
  )
  fades = name == "fading"
  keep = range(WHOLE if fades else options.layers)
  whole = Llama(SHAPE, WHOLE if stands_beside(config.distill) else len(keep), rngs=nnx.Rngs(0))
  way = way_of(config, SHAPE, len(keep))
  model = way.prepare(keep_layers(whole, keep))
  trained, frozen = way.split(model)
  teacher, own = beside(whole, model, frozen, config.distill, keep) if stands_beside(config.distill) else (None, {})
  frozen = frozen | own
  trained = jax.tree.map(lambda leaf: leaf.copy(), trained)
  state = [trained, jax.jit(lambda t: init_optimizer(config, t))(trained)]
  fading = Fading(tuple(range(options.layers - 2, WHOLE - 2)), 0.1) if fades else None
  draws = np.random.default_rng(0)
  batch = batch_of(draws.integers(0, SHAPE.vocab_size, (options.rows, options.length + 1), dtype=np.int32))
  if top := config.distill.cache_top:
    ids_BTK = draws.integers(0, SHAPE.vocab_size, (options.rows, options.length, top), dtype=np.int32)
    batch = batch._replace(likely=(ids_BTK, np.full(ids_BTK.shape, -np.log(2 * top), np.float32)))
  began = time.monotonic()
  lowered = jax.jit(
    make_step(config, way.join, teacher, fading), donate_argnums=(0, 1), compiler_options=compiler_options()
  ).lower(*state, batch, frozen=frozen)
  program = lowered.compile()
  flops = way.flops(options.length).total + (teacher.flops(options.length) if teacher else 0)
  facts = {"compile_seconds": time.monotonic() - began, "flops": flops}
  facts |= {"trained_bytes": sum(leaf.nbytes for leaf in trained.values())}
  facts |= {"optimizer_bytes": sum(leaf.nbytes for leaf in jax.tree.leaves(state[1]))}
  del model, whole, trained
  pipe.send(facts)
  while pipe.recv():
    began = time.monotonic()
    *state[:], metrics = program(*state, batch, frozen=frozen)
    loss = float(metrics.loss)
    pipe.send((time.monotonic() - began, loss, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024))


def started(name: str, options: argparse.Namespace) -> tuple[Connection, dict[str, Any]]:
  spawn = multiprocessing.get_context("spawn")
  pipe, theirs = spawn.Pipe()
  spawn.Process(target=serve, args=(name, options, theirs), daemon=True).start()
  return pipe, pipe.recv()


def step(pipe: Connection) -> tuple[float, float, int]:
  pipe.send(True)
  return pipe.recv()


def measured(options: argparse.Namespace) -> dict[str, Any]:
  everything, base = started("all", options)
  _, _, peak = step(everything)
  found: dict[str, Any] = {"options": vars(options), "all": {**base, "peak_bytes": peak}}
  for name in options.ways:
    pipe, facts = started(name, options)
    _, loss, _ = step(pipe)
    turns = [(step(everything)[0], step(pipe)) for _ in range(options.repeats)]
    alone, own = (statistics.median(seconds) for seconds in zip(*((a, o[0]) for a, o in turns), strict=True))
    peak = turns[-1][1][2]
    found[name] = facts | {
      "seconds": own,
      "seconds_of_all": alone,
      "seconds_ratio": own / alone,
      "flops_ratio": facts["flops"] / base["flops"],
      "peak_bytes": peak,
      "peak_ratio": peak / found["all"]["peak_bytes"],
      "first_loss": loss,
    }
    pipe.send(False)
    sys.stderr.write(f"{name}: {json.dumps(found[name])}\n")
  everything.send(False)
  return found


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--layers", type=int, default=24)
  parser.add_argument("--rows", type=int, default=4)
  parser.add_argument("--length", type=int, default=256)
  parser.add_argument("--repeats", type=int, default=3)
  parser.add_argument("--layout", choices=["scan", "unrolled"], default="unrolled")
  parser.add_argument("--remat", default="none")
  parser.add_argument("--ways", nargs="+", choices=[*WAYS], default=[name for name in WAYS if name != "all"])
  print(json.dumps(measured(parser.parse_args()), indent=2))


if __name__ == "__main__":
  main()
