"""A run folder as jaxchop run leaves it. Every number in it is invented: test data, not a measurement."""

import copy
import json
import math
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from jaxchop.report.page import write_report

DROP = [20, 21, 22, 23, 24, 25]
KEEP = [layer for layer in range(30) if layer not in DROP]
PROTOCOL = "windows of 512 tokens, stride 512, no BOS token, documents joined by a blank line, held-out topics"
SPEED = "batch 1, prompt of 128 tokens, 32 new tokens, median of 7 alternating runs"

SUMMARY = {
  "original": {
    "layers": 30,
    "parameters": 134_515_008,
    "bytes": 269_060_552,
    "perplexity": 12.31,
    "bits_per_byte": 0.98,
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


@pytest.fixture
def plan() -> dict:
  return copy.deepcopy(PLAN)


@pytest.fixture
def summary() -> dict:
  return copy.deepcopy(SUMMARY)
