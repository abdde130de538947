"""A run folder as jaxchop run leaves it. Every number in it is invented: test data, not a measurement."""

import copy
import json
import math
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from jaxchop.report.page import write_report
from jaxchop.report.results import Run, read_run

DROP = [20, 21, 22, 23, 24, 25]
KEEP = [layer for layer in range(30) if layer not in DROP]
PROTOCOL = "windows of 512 tokens, stride 512, no BOS token, documents joined by a blank line, held-out topics"
PROBE = "4 items of each level, 3 solved ones before each, greedy, the whole line must be right"
SPEED = "batch 1, prompt of 128 tokens, 32 new tokens, median of 7 alternating runs"

SUMMARY = {
  "original": {
    "layers": 30,
    "parameters": 134_515_008,
    "bytes": 269_060_552,
    "perplexity": 12.31,
    "bits_per_byte": 0.98,
    "capability": 0.4625,
    "capability_protocol": PROBE,
    "protocol": PROTOCOL,
    "prefill_tokens_per_second": 912.4,
    "decode_tokens_per_second": 23.61,
    "speed_protocol": SPEED,
  },
  "pruned": {
    "layers": 24,
    "parameters": 113_276_736,
    "bytes": 226_580_112,
    "perplexity": 27.63,
    "bits_per_byte": 1.295,
    "capability": 0.1,
    "capability_protocol": PROBE,
    "protocol": PROTOCOL,
    "prefill_tokens_per_second": 1131.0,
    "decode_tokens_per_second": 28.94,
    "speed_protocol": SPEED,
  },
  "recovered": {
    "layers": 24,
    "parameters": 113_276_736,
    "bytes": 226_580_112,
    "perplexity": 14.12,
    "bits_per_byte": 1.033,
    "capability": 0.2,
    "capability_protocol": PROBE,
    "protocol": PROTOCOL,
    "prefill_tokens_per_second": 1128.2,
    "decode_tokens_per_second": 28.71,
    "speed_protocol": SPEED,
  },
  "tokens": 61_440,
  "seconds": {
    "load": 6.2,
    "score": 21.5,
    "prune": 0.4,
    "pack": 3.1,
    "recover": 263.0,
    "evaluate": 104.8,
    "export": 9.9,
  },
  "gap_closed": 0.83,
  "recovery": {
    "steps": 60,
    "skipped": 1,
    "spikes": 2,
    "goodput": {
      "seconds": 250.0,
      "parts": {"other": 2.0, "productive": 200.0, "data_wait": 0.0, "compile": 30.0, "save": 8.0, "lost": 10.0},
      "productive_share": 0.8,
      "processes": 3,
      "steps_lost": 4,
    },
    "plan": {"peak": "a measured 140 GFLOP/s"},
  },
  "export": "runs/quickstart/export",
  "check": {
    "ok": True,
    "targets": {
      "transformers 4": {"loads": True, "why": ""},
      "transformers 5": {"loads": True, "why": ""},
      "vLLM": {"loads": True, "why": ""},
      "llama.cpp": {
        "loads": False,
        "why": "its converter knows no tokenizer with this hash; name the pre-tokenizer",
      },
    },
    "lines": [
      "218 tensors in 1 file, all of the shapes that config.json asks for",
      "logits equal the model in memory within 2.3e-05 (full forward) and 2.7e-05 (cached decode)",
    ],
  },
  "peak_memory_bytes": 3_412_000_000,
  "versions": {"jaxchop": "0.1.0", "jax": "0.10.2", "flax": "0.12.8", "python": "3.11.9"},
  "machine": "2 CPU cores, jax on cpu",
}
PLAN = {
  "source": {"name": "HuggingFaceTB/SmolLM2-135M-Instruct", "revision": "main", "digest": "sha256:00"},
  "layers": 30,
  "keep": KEEP,
  "drop": DROP,
  "merges": [],
  "criterion": {"name": "block_influence", "definition": "mean over tokens of 1 - cos(input, output) of the block."},
  "words": "removes layers 20..25, keeps 0..19 and 26..29",
}
SAMPLES = {
  "original": (
    " a collection of items that are ordered and changeable. Lists are written with square brackets, and they can hold",
    " Paris. The city is known for its museums, its architecture and the river that runs through its centre.",
    " use the open function in a with statement:\n\nwith open('notes.txt') as f:\n  for line in f:\n    print(line)",
  ),
  "pruned": (
    " a list of the list of the items, and the the list is a list that which the list",
    " the the city of the country, and the capital the capital of the of the city is",
    " you you can use the file the file file the open open line line:\n\nopen open(file) line",
  ),
  "recovered": (
    " a sequence of objects. The list object supports the methods append, insert and remove, which change it in place",
    " a city in the north of the country, and is the name of the largest of its cities.",
    " use the open function:\n\nwith open('file.txt', 'r') as f:\n  for line in f:\n    print(line, end='')",
  ),
}
PROMPTS = ("A list in Python is", "The capital of France is", "To open a file and read it line by line,")
RECIPE = """out: runs/quickstart
model:
  name: HuggingFaceTB/SmolLM2-135M-Instruct
prune:
  criterion: block_influence
  count: 6
recover:
  steps: 60
"""


def influences() -> list[float]:
  """High at both ends, low before the last ones, as published curves look."""
  noise = random.Random(0)
  low = [0.06 + 0.12 * math.exp(-layer / 4) - 0.0014 * layer + noise.uniform(0, 0.02) for layer in range(30)]
  return [0.43, *low[1:-1], 0.24]


# Six criteria of 8 layers. Of 2 layers they drop, in this order: 2 5, 3 4, 3 4, 2 3, 6 7, 3 5.
LAYERS = 8
MANY_SCORES = {
  "magnitude_l1": {"per_layer": [8.0, 7.0, 1.0, 6.0, 5.0, 2.0, 4.0, 3.0]},
  "block_influence": {
    "per_layer": [0.9, 0.5, 0.4, 0.1, 0.2, 0.3, 0.35, 0.6],
    "interval": [[0.05, 0.95]] * LAYERS,
  },
  "angular": {"chooses": "run", "run_share": [0.9, 0.6, *[0.5] * 6]},
  "perplexity_run": {"chooses": "run", "run_share": [1.0] * 8},
  "cka": {"per_layer": [0.1] * LAYERS},
  "perplexity_greedy": {"chooses": "order", "per_layer": [3.0, 3.0, 3.0, 1.0, 3.0, 2.0, 3.0, 3.0]},
}
MANY_PLAN = {
  "source": {"name": "org/eight"},
  "layers": LAYERS,
  "keep": [0, 1, 2, 5, 6, 7],
  "drop": [3, 4],
  "criterion": {"name": "angular", "definition": "the angle between the ends of a run"},
  "words": "removes layers 3..4, keeps 0..2 and 5..7",
}


def many_scores_file() -> dict:
  """A scores.json of six criteria; lowest are the runs from layer 3 on by angle, from 2 on by perplexity."""
  sizes = range(1, LAYERS + 1)
  runs = {
    "angular": [[0.05 * size + 0.01 * abs(start - 3) for start in range(LAYERS + 1 - size)] for size in sizes],
    "perplexity_run": [[10.0**size + abs(start - 2) for start in range(LAYERS + 1 - size)] for size in sizes],
  }
  usual = MANY_SCORES["block_influence"]["per_layer"]
  absent = {"chooses": "lowest", "interval": None, "run_share": None}
  return {
    "criteria": {
      name: {"definition": f"what {name} is", **absent, "per_layer": runs.get(name, [None])[0], **copy.deepcopy(given)}
      for name, given in MANY_SCORES.items()
    },
    "windows": runs,
    "pairs": {"cka": [[1 - abs(one - other) / 10 for one in range(LAYERS + 1)] for other in range(LAYERS + 1)]},
    # In one resampling of four, layer 5 goes instead of layer 3.
    "bootstrap": {"block_influence": [usual, usual, usual, [*usual[:3], 0.3, 0.2, 0.1, 0.35, 0.6]]}
    | {name: [rows[0]] * 4 for name, rows in runs.items()},
    "baseline": {"nll": math.log(12.5), "interval": [2.4, 2.6]},
    "model": {"name": "org/eight", "revision": "main", "digest": "00"},
    "data": {"name": "builtin", "digest": "00", "windows": 16, "window": 256},
  }


def metrics(steps: int) -> list[dict]:
  noise = random.Random(1)
  lines = []
  for step in range(1, steps + 1):
    loss = 2.65 + 0.95 * math.exp(-6 * step / steps) + noise.gauss(0, 0.06)
    rate = 231 + noise.uniform(-9, 9)
    lines.append(
      {
        "step": step,
        "loss": loss,
        "loss_hex": loss.hex(),
        "grad_norm": 1.1,
        "learning_rate": 3e-4,
        "tokens": 1024 * step,
        "seconds": 1024 / rate,
        "tokens_per_second": rate,
        "mfu": 0.4,
      }
    )
  return lines


def evaluation() -> dict:
  models = []
  for name, continuations in SAMPLES.items():
    one = SUMMARY[name]
    samples = [{"prompt": p, "continuation": c} for p, c in zip(PROMPTS, continuations, strict=True)]
    measured = {"perplexity": {one["protocol"]: one["perplexity"]}, "bits_per_byte": one["bits_per_byte"]}
    models.append({"name": name, **measured, "tokens": 40_960, "samples": samples})
  return {"models": models}


def write_run(folder: Path, **changed) -> Path:
  """Writes the run folder; `scores=None` leaves a file out, `plan={...}` writes another one."""
  scores = influences()
  interval = [[0.93 * score, 1.06 * score] for score in scores]
  influence = {"definition": PLAN["criterion"]["definition"], "per_layer": scores, "interval": interval}
  files = {
    "scores": {"criteria": {"block_influence": influence}},
    "plan": PLAN,
    "metrics": metrics(60),
    "eval": evaluation(),
    "summary": SUMMARY,
    "recipe": RECIPE,
    **changed,
  }
  folder.mkdir(parents=True, exist_ok=True)
  for name in ("scores", "plan", "eval", "summary"):
    if files[name] is not None:
      (folder / f"{name}.json").write_text(json.dumps(files[name]))
  if files["metrics"] is not None:
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in files["metrics"]))
  if files["recipe"] is not None:
    (folder / "recipe.yaml").write_text(files["recipe"])
  return folder


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
  """Writes a run folder: `make_run(scores=None)` leaves a file out, `make_run(plan={...})` writes another one."""
  return lambda **changed: write_run(tmp_path / "quickstart", **changed)


@pytest.fixture(scope="session")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Path:
  """A whole run with its report; drawing takes a second, so it is done once."""
  folder = write_run(tmp_path_factory.mktemp("reported") / "quickstart")
  write_report(folder)
  return folder


@pytest.fixture(scope="session")
def scored_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
  """A folder that held nothing but the scores of six criteria, with its report."""
  folder = tmp_path_factory.mktemp("scored") / "only"
  folder.mkdir()
  (folder / "scores.json").write_text(json.dumps(many_scores_file()))
  write_report(folder)
  return folder


@pytest.fixture
def many_scores() -> dict:
  return many_scores_file()


@pytest.fixture
def many_plan() -> dict:
  return copy.deepcopy(MANY_PLAN)


@pytest.fixture
def make_scored(make_run: Callable[..., Path], many_scores: dict, many_plan: dict) -> Callable[..., Run]:
  """Reads a run of six criteria and their plan: `make_scored(plan=None)`, `make_scored(scores={...})`."""
  bare = {"metrics": None, "eval": None, "summary": None, "recipe": None}
  return lambda **changed: read_run(make_run(**{**bare, "scores": many_scores, "plan": many_plan, **changed}))


@pytest.fixture
def plan() -> dict:
  return copy.deepcopy(PLAN)


@pytest.fixture
def summary() -> dict:
  return copy.deepcopy(SUMMARY)
