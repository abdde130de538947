"""What a training step of Llama-2-7B and Llama-3.1-8B takes on four TPU slices, by their compiler: the budget table.

  python tests/benchmarks/bench_budget.py [--only SUBSTRING] [--again]

Each row is `jaxchop preflight` of the shipped 7B recipe with 4,096 tokens a chip in one micro-batch, `layout: unrolled`
and `remat: full`, at full depth and without a quarter of the layers, of 2,048 and of 4,096 tokens a sequence. A row
takes minutes; finished ones are in docs/budget.json, and are compiled again with `--again` alone. The table stands in
BUILD.md, where it is written anew after each row, and is printed at the end.
"""

import argparse
import dataclasses
import importlib.metadata
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jaxchop.files import write_json, write_text
from jaxchop.preflight.command import preflight
from jaxchop.recipes import read_recipe

ROOT = Path(__file__).parents[2]
RECIPE, ROWS, PAGE = (
  ROOT / name for name in ("configs/slices/llama-2-7b-v5e-4x4.yaml", "docs/budget.json", "BUILD.md")
)
# The table stands between these lines of the page.
_FROM, _TO = "<!-- budget: made by tests/benchmarks/bench_budget.py -->\n", "<!-- end of budget -->\n"
MODELS = {"Llama-2-7B": "meta-llama/Llama-2-7b-hf", "Llama-3.1-8B": "meta-llama/Llama-3.1-8B"}
TOKENS_A_CHIP = 4096
HEAD = (
  "model, layers",
  "slice",
  "sequence",
  "peak HBM, GB",
  "FLOP over the model's",
  "gathered, GB",
  "scattered, GB",
  "all-reduced, GB",
  "exchanged, GB",
  "core, s",
  "step, s",
  "s to compile",
)
CORE = "matrix products", "memory and other operations"
_KINDS = "all-gather", "reduce-scatter", "all-reduce", "all-to-all"
WORDS = """Figures are the compiler's, of one chip and one step ({versions}): {tokens:,} tokens a chip
in one micro-batch, `fsdp` over all chips, `layout: unrolled`, `remat: full`, float32 parameters and Adam, compute in
bfloat16. Bytes are those on the wire. Seconds are its own schedule: on the core without attention kernels, and of the
whole step, with these at the chip's peak, which they do not reach, and with what of the wire nothing hides. They
compare settings; nothing here was run on a TPU. `python tests/benchmarks/bench_budget.py` makes the table.

"""


class Row(NamedTuple):
  """One setting."""

  model: str
  topology: str
  layers: int
  seq_len: int

  @property
  def key(self) -> str:
    return f"{self.model} {self.topology} {self.layers} layers {self.seq_len}"


def rows() -> Iterator[Row]:
  """Yields every row, those that are compared with others' figures first."""
  for topology in ("v5e:4x4", "v6e:4x4", "v5p:2x2x4", "v5e:16x16"):
    for model in MODELS:
      for seq_len in (2048, 4096):
        for layers in (32, 24):
          yield Row(model, topology, layers, seq_len)


def compiled(row: Row) -> dict[str, Any]:
  """Returns what preflight says of a row."""
  chips = math.prod(map(int, row.topology.partition(":")[2].split("x")))
  recipe = read_recipe([RECIPE])
  settings = dataclasses.replace(
    recipe.recover,
    seq_len=row.seq_len,
    batch_size=chips * TOKENS_A_CHIP // row.seq_len,
    accumulate=1,
    layout="unrolled",
    remat="full",
  )
  recipe = dataclasses.replace(recipe, model=MODELS[row.model], recover=settings)
  return preflight(recipe, row.topology, layers=row.layers)


def budget(found: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the figures of a row that are kept."""
  return {
    "fits": found["fits"],
    "peak_bytes": found["hbm"]["peak_bytes"],
    "flops_per_step": found["flops_per_step"],
    "model_flops_per_step": found["model_flops_per_step"],
    "wire_bytes": found.get("collectives"),
    "seconds": found.get("seconds_by_resource"),
    "compile_seconds": found["compile_seconds"],
    "digest": found["digest"],
    "versions": {name: importlib.metadata.version(name) for name in ("jax", "libtpu")},
  }


def table(found: Mapping[str, Mapping[str, Any]]) -> str:
  """Returns the page of all rows that are known."""
  made = dict.fromkeys(", ".join(f"{name} {v}" for name, v in one["versions"].items()) for one in found.values())
  lines = [f"| {' | '.join(HEAD)} |", "|---" * 3 + "|---:" * (len(HEAD) - 3) + "|"]
  for row in rows():
    if (one := found.get(row.key)) is None:
      continue
    wire, seconds = one["wire_bytes"], one["seconds"]
    cells = [
      f"{row.model}, {row.layers}",
      row.topology,
      f"{row.seq_len:,}",
      f"{one['peak_bytes'] / 1e9:.2f}",
      f"{one['flops_per_step'] / one['model_flops_per_step']:.2f}",
      # Of a program that does not fit there is no schedule.
      *(f"{wire.get(kind, 0) / 1e9:.1f}" if wire else "-" for kind in _KINDS),
      *((f"{seconds[CORE[0]] + seconds[CORE[1]]:.3f}", f"{sum(seconds.values()):.3f}") if seconds else "--"),
      f"{one['compile_seconds']:.0f}",
    ]
    lines.append(f"| {' | '.join(cells)} |")
  return WORDS.format(tokens=TOKENS_A_CHIP, versions="; ".join(made)) + "\n".join(lines) + "\n"


def in_page(page: str, made: str) -> str:
  """Returns the page with the table that was made in the place of the one that it holds."""
  before, rest = page.split(_FROM)
  _, after = rest.split(_TO)
  return before + _FROM + made + _TO + after


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--only", default="", help="rows whose key holds this, as 'Llama-2-7B v5e:4x4'")
  parser.add_argument("--again", action="store_true", help="compile rows anew that are known")
  options = parser.parse_args()
  found = json.loads(ROWS.read_text()) if ROWS.exists() else {}
  for row in rows():
    if options.only in row.key and (options.again or row.key not in found):
      found[row.key] = budget(compiled(row))
      write_json(ROWS, found)
      write_text(PAGE, in_page(PAGE.read_text(), table(found)))
  print(table(found))


if __name__ == "__main__":
  main()
