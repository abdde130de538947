"""check: an export is proven, and whatever was done to it afterwards is found."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_models
from safetensors.numpy import load_file

from jaxchop.errors import UsageError
from jaxchop.hub import check as module
from jaxchop.hub.check import CheckReport, check, check_in_fresh_process
from jaxchop.hub.export import export_model
from jaxchop.hub.load import load_model, open_checkpoint
from jaxchop.hub.rewrite import prune_checkpoint
from jaxchop.hub.safetensors import read_headers
from jaxchop.model.llama import Llama

KEEP = (0, 1, 3)
LOADERS = ["transformers 4", "transformers 5", "vLLM", "llama.cpp"]


def prune(source: Path, out: Path, **settings) -> Path:
  prune_checkpoint(open_checkpoint(str(source)), KEEP, out, readme="", provenance={}, **settings)
  return out


def failing(report: CheckReport) -> dict[str, str]:
  assert report.ok == all(line.ok is not False for line in report.lines)
  return {line.name: line.detail for line in report.lines if line.ok is False}


def line(report: CheckReport, name: str):
  return next(line for line in report.lines if line.name == name)


def flip(folder: Path, tensor: str) -> str:
  """Flips one low bit of a tensor and returns the file's name."""
  stored = read_headers(folder)[tensor]
  raw = bytearray(stored.file.read_bytes())
  raw[stored.start] ^= 1
  stored.file.write_bytes(raw)
  return stored.file.name


@pytest.mark.parametrize("dtype", [None, "bfloat16", "float16"])
def test_a_prune_is_proven_to_the_last_bit(tiny_folder, tmp_path, dtype):
  report = check(prune(tiny_folder(), tmp_path / "out", dtype=dtype))
  assert failing(report) == {}
  assert all(line.ok for line in report.lines) and [line.name for line in report.targets] == LOADERS
  assert "0.00e+00 (at most 1e-04) over 144 positions" in line(report, "source").detail
  assert "past the trained 128" in line(report, "cached decode").detail


@pytest.mark.parametrize("kind", ["linear", "dynamic", "yarn", "llama3"])
def test_every_rope_kind_is_proven(tiny_folder, tmp_path, kind):
  rope = {"rope_type": kind, "factor": 4.0}
  if kind in ("yarn", "llama3"):
    rope["original_max_position_embeddings"] = 32
  if kind == "llama3":
    rope |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
  assert failing(check(prune(tiny_folder(rope_scaling=rope, tie_word_embeddings=True), tmp_path / "out"))) == {}


def test_the_report_survives_json(tiny_folder, tmp_path):
  report = check(prune(tiny_folder(), tmp_path / "out"))
  content = json.loads(json.dumps(report.to_dict()))
  assert content["ok"] is True
  assert CheckReport.from_dict(content) == report


def test_a_fresh_process_says_the_same(tiny_folder, tmp_path):
  out = prune(tiny_folder(dtype="bfloat16"), tmp_path / "out")
  assert check_in_fresh_process(out) == check(out)


def test_a_fresh_process_hands_on_what_is_wrong_with_the_request(tmp_path):
  for ask in (check, check_in_fresh_process):
    with pytest.raises(UsageError, match="is not a folder"):
      ask(tmp_path / "nowhere")


@pytest.mark.parametrize(
  "tensor", ["model.embed_tokens.weight", "model.layers.2.mlp.down_proj.weight", "model.norm.weight"]
)
def test_a_flipped_bit_is_found_in_its_file_and_tensor(tiny_folder, tmp_path, tensor):
  out = prune(tiny_folder(dtype="bfloat16"), tmp_path / "out", max_shard_size=8000)
  file = flip(out, tensor)
  said = failing(check(out))["digests"]
  assert f"tensor {tensor} in" in said and file in said and "differs from its digest" in said


def test_values_that_are_not_finite_are_found_without_digests(tiny_folder):
  folder = tiny_folder()
  weights = load_file(folder / "model.safetensors")
  weights["model.norm.weight"][3] = np.inf
  tiny_models.write_weights(folder, weights)
  assert "tensor model.norm.weight" in failing(check(folder))["digests"]


@pytest.mark.parametrize("change", ["missing", "extra"])
def test_a_tensor_too_few_or_too_many_is_found(tiny_folder, tmp_path, change):
  out = prune(tiny_folder(), tmp_path / "out")
  weights = load_file(out / "model.safetensors")
  if change == "missing":
    del weights["model.layers.1.mlp.up_proj.weight"]
  else:
    weights["model.layers.1.mlp.up_proj.bias"] = np.zeros(40, np.float32)
  tiny_models.write_weights(out, weights)
  report = check(out)
  assert "model.layers.1.mlp.up_proj" in failing(report)["config against tensors"]
  assert not any(line.ok for line in report.targets)


def test_a_broken_file_is_the_only_line(tiny_folder, tmp_path):
  out = prune(tiny_folder(), tmp_path / "out")
  raw = (out / "model.safetensors").read_bytes()
  (out / "model.safetensors").write_bytes(raw[:-1])
  report = check(out)
  assert [line.name for line in report.lines] == ["files"] and not report.ok
  assert "model.safetensors" in failing(report)["files"]


def test_a_wrong_rope_setting_shows_against_the_source(tiny_folder, tmp_path):
  out = prune(tiny_folder(), tmp_path / "out")
  config = json.loads((out / "config.json").read_text())
  config["rope_theta"] = config["rope_parameters"]["rope_theta"] = 500000.0
  (out / "config.json").write_text(json.dumps(config))
  assert set(failing(check(out))) == {"source"}


def test_another_source_is_no_proof(tiny_folder, tmp_path):
  out = prune(tiny_folder(), tmp_path / "out")
  found = failing(check(out, source=str(tiny_folder(seed=1))))
  assert set(found) == {"source"} and "largest difference" in found["source"]


def test_a_source_that_cannot_be_opened_is_not_called_proven(tiny_folder, tmp_path):
  source = tiny_folder()
  out = prune(source, tmp_path / "out")
  source.rename(tmp_path / "elsewhere")
  assert failing(check(out))["source"].startswith("not compared: no model called")
  assert failing(check(out, source=str(tmp_path / "elsewhere"))) == {}


def test_a_folder_that_names_no_source_is_judged_on_its_own(tiny_folder):
  report = check(tiny_folder())
  assert report.ok
  assert {line.name for line in report.lines if line.ok is None} == {"digests", "source"}
  assert all("not compared" in line.detail for line in report.lines if line.ok is None)


@pytest.mark.parametrize("change", ["edited", "removed"])
def test_carried_files_are_compared(tiny_folder, tmp_path, change):
  out = prune(tiny_folder(), tmp_path / "out")
  if change == "edited":
    (out / "chat_template.jinja").write_text("{{ messages }}")
  else:
    (out / "chat_template.jinja").unlink()
  assert "chat_template.jinja" in failing(check(out))["carried files"]


def trained(checkpoint, keep) -> Llama:
  return jax.tree.map(lambda leaf: leaf * jnp.float32(1.01), load_model(checkpoint, keep=keep))


def test_trained_weights_are_compared_with_what_the_caller_opens(tiny_folder, tmp_path):
  checkpoint = open_checkpoint(str(tiny_folder(dtype="bfloat16")))
  about = {"readme": "", "provenance": {"reference": "run:mine"}}
  export_model(trained(checkpoint, KEEP), checkpoint, tmp_path / "out", keep=KEEP, **about)
  assert "not compared: no model called run:mine" in failing(check(tmp_path / "out"))["source"]
  asked = []

  def reference(name, revision, about):
    asked.append((name, revision, tuple(about["keep"])))
    return trained(checkpoint, about["keep"])

  assert failing(check(tmp_path / "out", reference=reference)) == {}
  assert asked == [("run:mine", None, KEEP)]


def test_a_report_with_a_failed_line_is_not_ok(tiny_folder, tmp_path):
  report = check(prune(tiny_folder(), tmp_path / "out"))
  assert not dataclasses.replace(report, lines=(*report.lines, module.Line(name="x", ok=False, detail=""))).ok
  assert dataclasses.replace(report, targets=(module.Line(name="x", ok=False, detail=""),)).ok


@pytest.mark.slow
@pytest.mark.real
def test_smollm2_is_proven(smollm2, tmp_path):
  checkpoint = open_checkpoint(str(smollm2))
  prune_checkpoint(checkpoint, [*range(21), 29], tmp_path / "out", readme="", provenance={})
  report = check(tmp_path / "out")
  assert failing(report) == {}
  assert all(line.ok for line in report.targets)
