"""lint: whatever in a folder contradicts itself is named, file and tensor or setting."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny_models
from safetensors.numpy import load_file, save_file

from jaxchop.errors import JaxchopError
from jaxchop.hub.facts import read_facts
from jaxchop.hub.lint import lint
from jaxchop.hub.load import open_checkpoint
from jaxchop.hub.rewrite import prune_checkpoint
from jaxchop.hub.targets import targets


@pytest.fixture
def folder(tiny_folder, tmp_path) -> Path:
  """An export of three layers out of four."""
  checkpoint = open_checkpoint(
    str(tiny_folder(dtype="bfloat16", rope_theta=500000.0, layer_types=["full_attention"] * 4))
  )
  prune_checkpoint(checkpoint, [0, 1, 3], tmp_path / "out", readme="", provenance={})
  return tmp_path / "out"


def complaints(folder: Path) -> dict[str, str]:
  return {line.name: line.detail for line in lint(read_facts(folder)) if not line.ok}


def edit(folder: Path, change: Callable[[dict], object], file: str = "config.json") -> None:
  content = json.loads((folder / file).read_text())
  change(content)
  (folder / file).write_text(json.dumps(content))


def edit_tensors(folder: Path, change: Callable[[dict], object]) -> None:
  tensors = load_file(folder / "model.safetensors")
  change(tensors)
  save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_an_export_agrees_with_itself(folder):
  assert complaints(folder) == {}


def test_a_source_folder_agrees_with_itself(tiny_folder):
  assert complaints(tiny_folder(rope_scaling={"type": "linear", "factor": 2.0})) == {}


def test_a_missing_tensor_is_named(folder):
  edit_tensors(folder, lambda tensors: tensors.pop("model.layers.2.mlp.up_proj.weight"))
  assert complaints(folder) == {"config against tensors": "tensor model.layers.2.mlp.up_proj.weight is missing"}


def test_an_extra_tensor_is_named_with_its_file(folder):
  extra = "model.layers.3.input_layernorm.weight"
  edit_tensors(folder, lambda tensors: tensors.update({extra: tensors["model.norm.weight"]}))
  assert f"tensor {extra} in model.safetensors: not part of" in complaints(folder)["config against tensors"]


def test_a_wrong_shape_is_named(folder):
  edit_tensors(folder, lambda tensors: tensors.update({"model.norm.weight": tensors["model.norm.weight"][:8].copy()}))
  assert "shape [8], config.json asks for [16]" in complaints(folder)["config against tensors"]


@pytest.mark.parametrize(
  "tied, said",
  [
    (True, "lm_head.weight in model.safetensors: config.json says tie_word"),
    (False, "lm_head.weight is missing, which"),
  ],
)
def test_a_head_that_contradicts_tying_is_named(tiny_folder, tied, said):
  folder = tiny_folder(tie_word_embeddings=not tied)
  edit(folder, lambda config: config.update(tie_word_embeddings=tied))
  assert said in complaints(folder)["config against tensors"]


def test_a_setting_that_is_not_supported_is_named(folder):
  edit(folder, lambda config: config.update(sliding_window=512))
  assert "sliding_window" in complaints(folder)["config against tensors"]


def test_a_list_of_the_wrong_length_is_named(folder):
  edit(folder, lambda config: config["layer_types"].append("full_attention"))
  assert complaints(folder) == {"per-layer settings": "config.json: layer_types has 4 entries for 3 layers"}


def test_a_list_as_long_as_the_source_was_is_named(folder):
  edit(folder, lambda config: config.update(extra={"gains": [1, 2, 3, 4]}))
  assert complaints(folder) == {"per-layer settings": "config.json: extra.gains has 4 entries for 3 layers"}


@pytest.mark.parametrize(
  "change, said",
  [
    (
      lambda config: config.update(rope_theta=10000.0),
      "rope_theta is 10000.0 in rope_theta and rope_scaling, 500000.0 in",
    ),
    (lambda config: config.pop("rope_theta"), "rope_theta is 10000.0 in"),
    (lambda config: config["rope_parameters"].update(rope_theta=1e6), "1000000.0 in rope_parameters"),
    (lambda config: config.update(rope_scaling={"type": "linear", "factor": 2.0}), "factor is 2.0 in rope_theta and"),
    (
      lambda config: config["rope_parameters"].update(rope_type="dynamic", factor=2.0),
      "factor is null in rope_theta and",
    ),
  ],
)
def test_rope_spellings_that_differ_are_named(folder, change, said):
  edit(folder, change)
  assert said in complaints(folder)["both RoPE spellings"]


def test_the_old_rope_spelling_alone_is_enough(folder):
  edit(folder, lambda config: config.pop("rope_parameters"))
  assert complaints(folder) == {}


def test_dtypes_that_differ_are_named(folder):
  edit(folder, lambda config: config.update(torch_dtype="float16"))
  assert complaints(folder) == {"dtypes": 'config.json: dtype is "bfloat16", torch_dtype "float16"'}


def test_a_tensor_of_another_dtype_than_was_written_is_named(folder):
  edit_tensors(folder, lambda tensors: tensors.update({"model.norm.weight": np.ones(16, np.float32)}))
  assert complaints(folder) == {
    "dtypes": "tensor model.norm.weight in model.safetensors is F32, jaxchop.json says bfloat16"
  }


@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
def test_a_special_token_outside_the_vocabulary_is_named(folder, file):
  edit(folder, lambda content: content.update(eos_token_id=[2, 320]), file)
  assert complaints(folder) == {"special tokens": f"{file}: eos_token_id 320 is outside a vocabulary of 320"}


def test_a_tokenizer_larger_than_the_vocabulary_is_named(folder):
  added = {"id": 320, "content": "<|new|>", "special": True}
  edit(folder, lambda content: content["added_tokens"].append(added), "tokenizer.json")
  assert complaints(folder) == {"vocabulary": "tokenizer.json has token 320, config.json a vocab_size of 320"}


def test_the_tiny_tokenizer_fills_its_vocabulary(folder):
  assert read_facts(folder).top_token == tiny_models.CONFIG["vocab_size"] - 1


JUNK = [None, "x", -1, 0, 1.5, True, [], [None], {}, {"rope_type": []}, {"x": [1, 2]}]


@pytest.mark.parametrize("value", JUNK, ids=str)
def test_no_setting_is_so_wrong_that_it_cannot_be_judged(folder, value):
  facts = read_facts(folder)
  for key in facts.config:
    wrong = dataclasses.replace(
      facts, config={**facts.config, key: value}, generation={key: value}, tokenizer={key: value}
    )
    assert all(isinstance(line.ok, bool) for line in (*lint(wrong), *targets(wrong)))


@pytest.mark.parametrize("key", ["source", "provenance", "tensors", "keep"])
def test_a_damaged_jaxchop_json_is_refused_by_name(folder, key):
  edit(folder, lambda content: content.update({key: ["x"]}), "jaxchop.json")
  with pytest.raises(JaxchopError, match=f"jaxchop.json: {key} is not"):
    read_facts(folder)


@pytest.mark.parametrize("content", ["{}", '{"model": 3}', '{"model": {"vocab": 3}, "added_tokens": 4}'])
def test_a_strange_tokenizer_has_no_highest_token(folder, content):
  (folder / "tokenizer.json").write_text(content)
  assert read_facts(folder).top_token is None
