"""rewrite: a prune by bytes says and holds what loading, slicing and exporting the model would."""

import json
import os
import signal
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from jaxchop.errors import JaxchopError, UsageError
from jaxchop.hub import names
from jaxchop.hub.export import export_model
from jaxchop.hub.load import load_model, open_checkpoint
from jaxchop.hub.rewrite import prune_checkpoint

ABOUT = {"readme": "# Smaller\n", "provenance": {"recipe": "by hand"}}
LAYERS = 4


def weights(folder: Path) -> dict[str, np.ndarray]:
  return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def contents(folder: Path) -> dict[str, bytes]:
  return {path.name: path.read_bytes() for path in folder.iterdir()}


def same(a: np.ndarray, b: np.ndarray) -> bool:
  return (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("tied", [True, False])
def test_identity_is_byte_equal(tiny_folder, tmp_path, dtype, tied):
  source = tiny_folder(dtype=dtype, shards=2, tie_word_embeddings=tied, attention_bias=True, mlp_bias=True)
  prune_checkpoint(open_checkpoint(str(source)), range(LAYERS), tmp_path / "out", **ABOUT)
  before, after = weights(source), weights(tmp_path / "out")
  assert set(before) == set(after)
  assert all(same(before[name], after[name]) for name in before)
  assert ("lm_head.weight" in after) != tied


@settings(max_examples=12)
@given(
  keep=st.sets(st.integers(0, LAYERS - 1), min_size=1).map(sorted),
  dtype=st.sampled_from(["bfloat16", "float16", "float32"]),
  limit=st.sampled_from([1, 9000, 10**9]),
  tied=st.booleans(),
)
def test_it_equals_loading_slicing_and_exporting(tiny_folder, tmp_path_factory, keep, dtype, limit, tied):
  checkpoint = open_checkpoint(str(tiny_folder(dtype=dtype, tie_word_embeddings=tied)))
  out = tmp_path_factory.mktemp("out")
  prune_checkpoint(checkpoint, keep, out / "bytes", max_shard_size=limit, **ABOUT)
  model = load_model(checkpoint, keep=keep)
  export_model(model, checkpoint, out / "model", keep=keep, max_shard_size=limit, **ABOUT)
  assert contents(out / "bytes") == contents(out / "model")


@settings(max_examples=10)
@given(keep=st.sets(st.integers(0, LAYERS - 1), min_size=1).map(sorted))
def test_each_kept_layer_stands_renumbered_and_unchanged(tiny_folder, tmp_path_factory, keep):
  source, out = tiny_folder(dtype="bfloat16"), tmp_path_factory.mktemp("out") / "out"
  written = prune_checkpoint(open_checkpoint(str(source)), keep, out, **ABOUT)
  before, after = weights(source), weights(out)
  kept = {new: name for name in before if (new := names.renumber(name, keep))}
  assert set(after) == set(kept)
  assert all(same(after[new], before[name]) for new, name in kept.items())
  assert json.loads((out / "config.json").read_text())["num_hidden_layers"] == written.layers == len(keep)


def test_pruning_twice_is_pruning_once(tiny_folder, tmp_path):
  source = open_checkpoint(str(tiny_folder()))
  prune_checkpoint(source, [0, 2, 3], tmp_path / "first", **ABOUT)
  prune_checkpoint(open_checkpoint(str(tmp_path / "first")), [0, 2], tmp_path / "second", **ABOUT)
  prune_checkpoint(source, [0, 3], tmp_path / "once", **ABOUT)
  assert contents(tmp_path / "second")["model.safetensors"] == contents(tmp_path / "once")["model.safetensors"]
  assert contents(tmp_path / "second")["config.json"] == contents(tmp_path / "once")["config.json"]


def test_another_dtype_is_cast_and_said(tiny_folder, tmp_path):
  source = tiny_folder(dtype="float32")
  prune_checkpoint(open_checkpoint(str(source)), [1], tmp_path / "out", dtype="bfloat16", **ABOUT)
  config = json.loads((tmp_path / "out" / "config.json").read_text())
  assert config["dtype"] == config["torch_dtype"] == "bfloat16"
  embedding = weights(tmp_path / "out")[names.EMBEDDING]
  assert same(embedding, weights(source)[names.EMBEDDING].astype(embedding.dtype))
  assert embedding.dtype.name == "bfloat16"


def test_the_source_digest_is_the_whole_source_s_whatever_is_kept(tiny_folder, tmp_path):
  checkpoint = open_checkpoint(str(tiny_folder(dtype="bfloat16")))
  for number, (keep, dtype) in enumerate([((0,), None), ((1, 3), None), ((2,), "float32")]):
    prune_checkpoint(checkpoint, keep, tmp_path / str(number), dtype=dtype, **ABOUT)
    about = json.loads((tmp_path / str(number) / "jaxchop.json").read_text())
    assert about["source"]["digest"] == checkpoint.digest()


@pytest.mark.parametrize("keep", [[], [4], [-1], [1, 0], [1, 1]])
def test_a_keep_list_that_is_none_is_refused(tiny_folder, tmp_path, keep):
  with pytest.raises(UsageError):
    prune_checkpoint(open_checkpoint(str(tiny_folder())), keep, tmp_path / "out", **ABOUT)
  assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused_by_name_and_nothing_stays(tiny_folder, tmp_path, bad):
  folder = tiny_folder(dtype="bfloat16")
  spoil(folder, "model.layers.2.mlp.up_proj.weight", bad)
  checkpoint = open_checkpoint(str(folder))
  with pytest.raises(JaxchopError, match=r"tensor model\.layers\.1\.mlp\.up_proj\.weight: element 7 is (nan|inf)"):
    prune_checkpoint(checkpoint, [0, 2], tmp_path / "out", **ABOUT)
  assert not any(tmp_path.iterdir())
  # The layer that is dropped may be the broken one: that can be why it goes.
  prune_checkpoint(checkpoint, [0, 1, 3], tmp_path / "out", **ABOUT)


def spoil(folder: Path, name: str, value: float) -> None:
  from tiny_models import write_weights

  tensors = weights(folder)
  tensors[name].reshape(-1)[7] = value
  write_weights(folder, tensors)


def test_values_too_large_for_the_asked_dtype_are_refused(tiny_folder, tmp_path):
  folder = tiny_folder(dtype="float32")
  spoil(folder, "model.layers.0.mlp.up_proj.weight", 1e6)
  with pytest.raises(JaxchopError, match="element 7 is inf as float16"):
    prune_checkpoint(open_checkpoint(str(folder)), [0], tmp_path / "out", dtype="float16", **ABOUT)


def test_memory_holds_blocks_not_tensors(tiny_folder, tmp_path):
  # 120,000 x 256 bfloat16 is 61 MB, and the head as much.
  folder = tiny_folder(dtype="bfloat16", vocab_size=120_000, hidden_size=256)
  checkpoint = open_checkpoint(str(folder))
  tracemalloc.start()
  prune_checkpoint(checkpoint, [0], tmp_path / "out", **ABOUT)
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert peak < 61e6


# A prune that says when it is halfway and then waits to be killed.
HALFWAY = """
import sys, time
from jaxchop.hub import export, rewrite
from jaxchop.hub.load import open_checkpoint
write = export.write_file
def slow(path, content):
  if path.name == "jaxchop.json":
    print("halfway", flush=True)
    time.sleep(60)
  write(path, content)
export.write_file = slow
rewrite.prune_checkpoint(open_checkpoint(sys.argv[1]), [0, 1], sys.argv[2], readme="", provenance={})
"""


def test_a_killed_prune_leaves_no_model_and_a_re_run_completes(tiny_folder, tmp_path):
  source, out = tiny_folder(shards=2), tmp_path / "out"
  process = subprocess.Popen([sys.executable, "-c", HALFWAY, str(source), str(out)], stdout=subprocess.PIPE)
  assert process.stdout is not None and process.stdout.readline() == b"halfway\n"
  os.kill(process.pid, signal.SIGKILL)
  process.wait()
  process.stdout.close()
  left = {path.name for path in tmp_path.rglob("*")}
  assert not out.exists()
  assert left and not left & {"config.json", "model.safetensors.index.json", "jaxchop.json"}
  prune_checkpoint(open_checkpoint(str(source)), [0, 1], out, **ABOUT)
  assert [path.name for path in tmp_path.iterdir()] == ["out"]
  assert open_checkpoint(str(out)).layers == 2


FULL = """
import resource, sys
from jaxchop.errors import JaxchopError
from jaxchop.hub.load import open_checkpoint
from jaxchop.hub.rewrite import prune_checkpoint
checkpoint = open_checkpoint(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
try:
  prune_checkpoint(checkpoint, [0], sys.argv[2], overwrite=True, readme="", provenance={})
except JaxchopError as error:
  print(error)
"""


def test_a_full_disk_keeps_the_old_folder_and_a_retry_works(tiny_folder, tmp_path):
  source, out = tiny_folder(), tmp_path / "out"
  prune_checkpoint(open_checkpoint(str(source)), [0, 1], out, **ABOUT)
  old = contents(out)
  said = subprocess.run([sys.executable, "-c", FULL, str(source), str(out)], capture_output=True, text=True, check=True)
  assert "model.safetensors: File too large" in said.stdout and said.stdout.count("\n") == 1
  assert contents(out) == old
  assert [path.name for path in tmp_path.iterdir()] == ["out"]
  prune_checkpoint(open_checkpoint(str(source)), [0], out, overwrite=True, **ABOUT)
  assert open_checkpoint(str(out)).layers == 1


@pytest.mark.real
def test_a_gguf_file_becomes_bfloat16(smollm2, tmp_path):
  checkpoint = open_checkpoint(str(smollm2))
  written = prune_checkpoint(checkpoint, [0, 29], tmp_path / "out", **ABOUT)
  assert written.layers == 2
  found = weights(tmp_path / "out")
  name = "model.layers.1.mlp.down_proj.weight"
  assert same(found[name], checkpoint.tensors["model.layers.29.mlp.down_proj.weight"].read().astype(found[name].dtype))
  assert {tensor.dtype.name for tensor in found.values()} == {"bfloat16"}
  assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"
