"""Peak memory and time of load_model on a generated sharded bfloat16 checkpoint of 13.5 GB.

  python tests/benchmarks/bench_load.py FOLDER [--dtype bfloat16]

Writes the checkpoint to FOLDER if it is not there (6.7 billion random weights in the shape of Llama-2-7B, in shards of
1 GB), then loads it in a fresh process and prints one JSON object. `peak_bytes` is what the process
held at most, `base_bytes` what it held before loading; the promise is peak - base < model + largest tensor.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from jaxchop.hub import names
from jaxchop.hub.hf_config import layer_count, parse_config
from jaxchop.hub.load import load_model, open_checkpoint
from jaxchop.model.tree import flatten

CONFIG = {
  "architectures": ["LlamaForCausalLM"],
  "model_type": "llama",
  "vocab_size": 32000,
  "hidden_size": 4096,
  "intermediate_size": 11008,
  "num_hidden_layers": 32,
  "num_attention_heads": 32,
  "num_key_value_heads": 32,
  "rms_norm_eps": 1e-5,
  "max_position_embeddings": 4096,
  "rope_theta": 10000.0,
  "tie_word_embeddings": False,
  "torch_dtype": "bfloat16",
}
SHARD_BYTES = 1_000_000_000


def generate(folder: Path) -> None:
  """Writes random weights shard by shard, then index and config."""
  folder.mkdir(parents=True, exist_ok=True)
  shapes = names.expected(parse_config(CONFIG, "benchmark"), layer_count(CONFIG))
  shards: list[list[str]] = [[]]
  for name in shapes:
    if shards[-1] and sum(2 * int(np.prod(shapes[n])) for n in [*shards[-1], name]) > SHARD_BYTES:
      shards.append([])
    shards[-1].append(name)
  weight_map, rng = {}, np.random.default_rng(0)
  for number, shard in enumerate(shards, 1):
    file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
    save_file({name: random(rng, shapes[name]) for name in shard}, folder / file, metadata={"format": "pt"})
    weight_map |= dict.fromkeys(shard, file)
  index = {"metadata": {"total_size": sum(2 * int(np.prod(s)) for s in shapes.values())}, "weight_map": weight_map}
  (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
  (folder / "config.json").write_text(json.dumps(CONFIG, indent=2))


def random(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
  return (0.02 * rng.standard_normal(shape, np.float32)).astype(ml_dtypes.bfloat16)


def peak_bytes() -> int:
  """Most memory this process ever held. getrusage would count its parent's before the exec as well."""
  status = Path("/proc/self/status")
  if not status.exists():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return 1024 * int(next(line for line in status.read_text().splitlines() if line.startswith("VmHWM")).split()[1])


def measure(folder: Path, dtype: str) -> dict[str, float]:
  checkpoint = open_checkpoint(str(folder))
  base, start = peak_bytes(), time.perf_counter()
  model = load_model(checkpoint, dtype=dtype)
  seconds, leaves = time.perf_counter() - start, flatten(model).values()
  held = sum(leaf.nbytes for leaf in leaves)
  largest = max(leaf.nbytes for leaf in leaves)
  result = {"model_bytes": held, "largest_tensor_bytes": largest, "base_bytes": base, "peak_bytes": peak_bytes()}
  result["over_model_bytes"] = result["peak_bytes"] - base - held
  return result | {"seconds": round(seconds, 2), "parameters": checkpoint.parameters}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("folder", type=Path)
  parser.add_argument("--dtype", default="bfloat16")
  parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
  settings = parser.parse_args()
  if settings.here:
    print(json.dumps(measure(settings.folder, settings.dtype)))
    return
  if not (settings.folder / "config.json").exists():
    generate(settings.folder)
  # A fresh process: the peak of generating would hide that of loading.
  subprocess.run([sys.executable, __file__, str(settings.folder), "--dtype", settings.dtype, "--here"], check=True)


if __name__ == "__main__":
  main()
