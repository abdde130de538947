"""targets: each loader's no comes with its reason, and where the real loader is at hand it agrees."""

import dataclasses
import json
import re
from pathlib import Path

import pytest
import transformers

from jaxchop.errors import JaxchopError
from jaxchop.hub.facts import Facts, Line, read_facts
from jaxchop.hub.load import open_checkpoint
from jaxchop.hub.rewrite import prune_checkpoint
from jaxchop.hub.targets import TARGETS, targets

ALL = set(TARGETS)
NEW = {"transformers 5", "vLLM"}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}


def export(tiny_folder, out: Path, **settings) -> Facts:
  checkpoint = open_checkpoint(str(tiny_folder(dtype="bfloat16", **settings)))
  prune_checkpoint(checkpoint, [0, 2], out, readme="", provenance={})
  return read_facts(out)


def changed(facts: Facts, **settings) -> Facts:
  return dataclasses.replace(facts, config={**facts.config, **settings})


def judged(facts: Facts) -> dict[str, Line]:
  return {line.name: line for line in targets(facts)}


def refusing(facts: Facts) -> set[str]:
  return {name for name, line in judged(facts).items() if not line.ok}


@pytest.mark.parametrize(
  "settings",
  [
    {},
    {"tie_word_embeddings": True},
    {"attention_bias": True, "mlp_bias": True},
    {"rope_theta": 500000.0},
    {"rope_scaling": {"type": "linear", "factor": 2.0}},
    {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}},
    {"rope_scaling": YARN},
    {"rope_scaling": {**LLAMA3, "original_max_position_embeddings": 8192}},
  ],
)
def test_an_export_loads_everywhere(tiny_folder, tmp_path, settings):
  assert refusing(export(tiny_folder, tmp_path / "out", **settings)) == set()


@pytest.mark.parametrize(
  "settings, who, why",
  [
    ({"architectures": ["MistralForCausalLM"]}, ALL, "architectures"),
    ({"quantization_config": {"quant_method": "gptq"}}, ALL, "quantization_config"),
    ({"num_hidden_layers": 3}, ALL, r"model\.layers\.2\..* is missing"),
    ({"vocab_size": 319}, ALL, "shape"),
    (
      {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
      {"transformers 4", "vLLM"},
      "rope_theta would be",
    ),
    ({"rms_norm_eps": 1}, NEW, "rms_norm_eps is 1, transformers 5 accepts float only"),
    ({"bos_token_id": [1]}, NEW, r"bos_token_id is \[1\]"),
    ({"use_cache": None}, NEW, "use_cache is null"),
    ({"layer_types": ["full_attention"]}, NEW, "layer_types has 1 entries for 2 layers"),
  ],
)
def test_a_no_has_its_reason(tiny_folder, tmp_path, settings, who, why):
  facts = changed(export(tiny_folder, tmp_path / "out"), **settings)
  assert refusing(facts) == who
  for name in who:
    assert re.search(why, judged(facts)[name].detail)


def test_a_head_beside_a_tied_embedding_is_noted(tiny_folder, tmp_path):
  facts = changed(export(tiny_folder, tmp_path / "out"), tie_word_embeddings=True)
  assert refusing(facts) == set()
  assert all("lm_head.weight is passed over" in line.detail for line in targets(facts))


def test_a_missing_head_stops_everyone(tiny_folder, tmp_path):
  facts = changed(export(tiny_folder, tmp_path / "out", tie_word_embeddings=True), tie_word_embeddings=False)
  assert refusing(facts) == ALL


def test_heads_that_do_not_divide_the_width_stop_transformers_5(tiny_folder, tmp_path):
  settings = {"hidden_size": 20, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 8}
  assert refusing(export(tiny_folder, tmp_path / "out", **settings)) == NEW


@pytest.mark.parametrize(
  "rope, why",
  [
    ({**LLAMA3, "original_max_position_embeddings": 64}, "takes 8192 for the llama3"),
    ({**YARN, "attention_factor": 1.5}, "ignores attention_factor"),
    ({**YARN, "mscale": 1.0, "mscale_all_dim": 0.7}, "ignores attention_factor and mscale"),
    ({**YARN, "truncate": False}, "truncate false"),
  ],
)
def test_rope_settings_that_llama_cpp_passes_over_stop_it_alone(tiny_folder, tmp_path, rope, why):
  facts = export(tiny_folder, tmp_path / "out", rope_scaling=rope)
  assert refusing(facts) == {"llama.cpp"}
  assert why in judged(facts)["llama.cpp"].detail


def test_yarn_s_own_attention_factor_is_no_obstacle(tiny_folder, tmp_path):
  rope = {**YARN, "attention_factor": 1.1386294361119891}
  assert refusing(export(tiny_folder, tmp_path / "out", rope_scaling=rope)) == set()


def test_dynamic_scaling_is_noted_where_it_is_ignored(tiny_folder, tmp_path):
  lines = judged(export(tiny_folder, tmp_path / "out", rope_scaling={"rope_type": "dynamic", "factor": 2.0}))
  for name in ("vLLM", "llama.cpp"):
    assert "same model up to 128 positions, not beyond" in lines[name].detail


def test_a_tokenizer_is_needed_where_text_goes_in(tiny_folder, tmp_path):
  facts = export(tiny_folder, tmp_path / "out")
  facts = dataclasses.replace(facts, files=facts.files - {"tokenizer.json"})
  assert refusing(facts) == {"vLLM", "llama.cpp"}
  assert "no tokenizer" in judged(facts)["transformers 5"].detail


def test_a_tokenizer_class_of_transformers_5_stops_transformers_4(tiny_folder, tmp_path):
  facts = export(tiny_folder, tmp_path / "out")
  assert refusing(dataclasses.replace(facts, tokenizer={"tokenizer_class": "TokenizersBackend"})) == {"transformers 4"}


@pytest.mark.parametrize(
  "settings",
  [
    {},
    {"rms_norm_eps": 1},
    {"initializer_range": 1},
    {"bos_token_id": [1]},
    {"eos_token_id": [1, 2]},
    {"eos_token_id": 1.0},
    {"pad_token_id": None},
    {"head_dim": None},
    {"hidden_size": 16.0},
    {"max_position_embeddings": None},
    {"attention_bias": 0},
    {"attention_dropout": None},
    {"attention_dropout": 0},
    {"use_cache": None},
    {"mlp_bias": "no"},
    {"pretraining_tp": 1.5},
    {"hidden_act": None},
    {"layer_types": ["full_attention"]},
    {"layer_types": ["full_attention"] * 2},
    {"num_attention_heads": 3},
  ],
)
def test_the_real_config_class_of_transformers_5_agrees(tiny_folder, tmp_path, settings):
  facts = changed(export(tiny_folder, tmp_path / "out"), **settings)
  try:
    transformers.LlamaConfig.from_dict(json.loads(json.dumps(facts.config)))
    accepted = True
  except Exception:
    accepted = False
  try:
    found = [finding for rule in TARGETS["transformers 5"] for finding in rule(facts)]
    ours = not any(finding.stops for finding in found)
  except (JaxchopError, TypeError):
    ours = False
  assert ours == accepted
