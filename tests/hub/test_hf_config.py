"""config.json: read as transformers reads it, refused where we would compute something else, cut without a trace."""

import copy

import pytest
import transformers
from hypothesis import given
from hypothesis import strategies as st

from jaxchop.errors import JaxchopError, UsageError
from jaxchop.hub.hf_config import cut_config, layer_count, parse_config
from jaxchop.hub.hf_rope import resolve
from jaxchop.model.config import Rope

CONFIG = {
  "architectures": ["LlamaForCausalLM"],
  "model_type": "llama",
  "vocab_size": 128,
  "hidden_size": 32,
  "intermediate_size": 64,
  "num_hidden_layers": 4,
  "num_attention_heads": 4,
  "rms_norm_eps": 1e-5,
  "max_position_embeddings": 256,
}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}


def test_missing_heads_and_head_width_follow_from_the_others():
  config = parse_config(CONFIG, "config.json")
  assert (config.kv_heads, config.head_dim, config.rope) == (4, 8, Rope(theta=10_000.0))
  assert not (config.tied or config.attention_bias or config.mlp_bias)


def test_head_width_may_stand_apart_from_the_model_width():
  config = parse_config(CONFIG | {"head_dim": 24, "num_key_value_heads": 2, "tie_word_embeddings": True}, "config.json")
  assert (config.head_dim, config.kv_heads, config.tied) == (24, 2, True)


@pytest.mark.parametrize("spelling", ["rope_parameters", "type", "rope_type"])
def test_both_rope_spellings_mean_the_same(spelling):
  if spelling == "rope_parameters":
    settings = {"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, **LLAMA3}}
  else:
    settings = {"rope_theta": 5e5, "rope_scaling": {spelling: "llama3", **LLAMA3}}
  wanted = Rope(kind="llama3", theta=5e5, factor=8.0, original_max_positions=64)
  assert parse_config(CONFIG | settings, "config.json").rope == wanted


ROPE_VALUES = {
  "rope_type": st.sampled_from(["default", "linear", "dynamic", "llama3", "yarn"]),
  "type": st.sampled_from(["default", "linear", "dynamic", "llama3", "yarn"]),
  "rope_theta": st.sampled_from([1e4, 5e5, 1000000]),
  "original_max_position_embeddings": st.sampled_from([64, 128]),
}
NEEDED = {key: st.just(value) for key, value in LLAMA3.items() if key not in ROPE_VALUES}
INSIDE = st.fixed_dictionaries(NEEDED, optional=ROPE_VALUES)


@given(
  st.fixed_dictionaries(
    {},
    optional={
      "rope_parameters": st.none() | INSIDE,
      "rope_scaling": st.none() | st.just({}) | INSIDE,
      "rope_theta": st.sampled_from([2e4, 3e5]),
      "original_max_position_embeddings": st.sampled_from([32, 96]),
    },
  )
)
def test_conflicting_rope_settings_resolve_as_in_transformers(settings):
  theirs = transformers.LlamaConfig.from_dict(copy.deepcopy(CONFIG | settings))
  theirs.standardize_rope_params()  # as the rotary embedding does before it reads them
  wanted = {key: value for key, value in theirs.rope_parameters.items() if key != "type"}
  assert resolve(CONFIG | settings, "config.json") == wanted


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}


def test_yarn_reads_its_own_settings_and_takes_nulls_as_defaults():
  extra = {"beta_fast": 16, "beta_slow": None, "mscale": 1.0, "mscale_all_dim": 0.5, "truncate": False}
  rope = parse_config(CONFIG | {"rope_scaling": YARN | extra}, "config.json").rope
  wanted = Rope(
    kind="yarn", factor=4.0, original_max_positions=64, beta_fast=16, mscale=1.0, mscale_all_dim=0.5, truncate=False
  )
  assert rope == wanted


def test_a_null_yarn_factor_is_the_ratio_of_the_lengths():
  assert parse_config(CONFIG | {"rope_scaling": YARN | {"factor": None}}, "config.json").rope.factor == 256 / 64


REFUSED = [
  ({"model_type": "mistral"}, "model_type is mistral"),
  ({"architectures": ["LlamaForSequenceClassification"]}, "architectures"),
  ({"hidden_act": "gelu"}, "hidden_act is gelu"),
  ({"sliding_window": 4096}, "sliding_window is 4096"),
  ({"layer_types": ["full_attention", "sliding_attention"] * 2}, "layer_types"),
  ({"no_rope_layers": [1, 1, 1, 0]}, "no_rope_layers"),
  ({"quantization_config": {"bits": 4}}, "quantization_config.*unquantised"),
  ({"per_layer_config": {"1": {"skip": ["attention"]}}}, "per_layer_config"),
  ({"residual_multiplier": 0.22}, "residual_multiplier is 0.22"),
  ({"num_local_experts": 8}, "num_local_experts is 8"),
  ({"rope_interleaved": True}, "rope_interleaved"),
  ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
  ({"rope_scaling": {"type": "longrope", "factor": 2.0}}, "RoPE type longrope"),
  ({"rope_scaling": {"rope_type": "linear"}}, "linear has factor None"),
  ({"rope_scaling": {"rope_type": "linear", "factor": "2"}}, "factor 2;"),
  ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0, "alpha": 1000}}, "alpha"),
  ({"rope_scaling": [2.0]}, "rope_scaling is"),
  ({"rope_theta": 0}, "rope_theta 0"),
  ({"hidden_size": None}, "hidden_size is missing"),
  ({"vocab_size": "128"}, "vocab_size is 128"),
  ({"num_hidden_layers": True}, "num_hidden_layers is True"),
  ({"num_attention_heads": 5}, "hidden_size 32 does not divide"),
  ({"num_key_value_heads": 3}, "cannot share"),
  ({"head_dim": 7}, "even"),
  ({"attention_bias": "yes"}, "attention_bias is yes"),
  ({"rms_norm_eps": -1.0}, "rms_norm_eps is -1.0"),
]


@pytest.mark.parametrize(
  ("settings", "complaint"), REFUSED, ids=[next(iter(s)) + str(i) for i, (s, _) in enumerate(REFUSED)]
)
def test_an_unsupported_setting_is_refused_by_name(settings, complaint):
  with pytest.raises(JaxchopError, match=f"^some/config.json: .*{complaint}") as caught:
    parse_config(CONFIG | settings, "some/config.json")
  assert "\n" not in str(caught.value)


JSON = st.recursive(
  st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
  lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["rope_type", "factor", "x"]), inner),
  max_leaves=5,
)
KEYS = [
  *CONFIG,
  "head_dim",
  "rope_theta",
  "rope_scaling",
  "rope_parameters",
  "tie_word_embeddings",
  "num_key_value_heads",
]
KEYS += ["layer_types", "no_rope_layers", "sliding_window", "hidden_act", "per_layer_config", "num_experts", "mlp_bias"]


@given(key=st.sampled_from(KEYS), value=JSON)
def test_whatever_a_setting_holds_it_is_parsed_or_refused_in_one_line(key, value):
  try:
    parse_config(CONFIG | {key: value}, "config.json")
  except JaxchopError as error:
    assert "\n" not in str(error)


def test_settings_that_change_nothing_are_accepted():
  harmless = {
    "sliding_window": 4096,
    "use_sliding_window": False,
    "layer_types": ["full_attention"] * 4,
    "attention_dropout": 0.1,
    "pretraining_tp": 2,
    "rope_interleaved": False,
    "is_llama_config": True,
    "rope_scaling": None,
  }
  assert parse_config(CONFIG | harmless, "config.json") == parse_config(CONFIG, "config.json")


SETTINGS = [
  {},
  {"rope_theta": 5e5, "rope_scaling": {"type": "llama3", **LLAMA3}, "eos_token_id": [5, 6, 7, 8]},
  {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e5, "factor": 4.0}, "head_dim": 24},
  {"rope_theta": 2e4, "rope_scaling": {"rope_type": "linear", "factor": 2.0}, "tie_word_embeddings": True},
]


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("keep", [(0, 1, 2, 3), (0, 3)])
def test_a_cut_config_states_the_same_architecture_here_and_in_transformers(settings, keep, tmp_path):
  source = CONFIG | settings
  cut = cut_config(source, keep, dtype="bfloat16")
  assert parse_config(cut, "cut") == parse_config(source, "source")
  assert layer_count(cut) == len(keep)
  theirs = transformers.LlamaConfig.from_dict(copy.deepcopy(cut))
  original = transformers.LlamaConfig.from_dict(copy.deepcopy(source))
  rope = {key: value for key, value in original.rope_parameters.items() if key != "type"}
  assert (theirs.num_hidden_layers, theirs.rope_parameters) == (len(keep), rope)


def test_a_cut_config_keeps_everything_else_as_it_was():
  extra = {
    "_name_or_path": "x",
    "auto_map": {"AutoModel": "m.M"},
    "mystery": {"a": [1, 2]},
    "eos_token_id": [1, 2, 3, 4],
  }
  source = CONFIG | extra | {"torch_dtype": "float16", "transformers_version": "4.40.0"}
  before = copy.deepcopy(source)
  cut = cut_config(source, (1, 3))
  assert source == before
  changed = {"num_hidden_layers": 2, "dtype": "float16", "rope_theta": 1e4, "rope_scaling": None}
  changed["rope_parameters"] = {"rope_theta": 1e4, "rope_type": "default"}
  assert cut == {key: value for key, value in source.items() if key not in ("_name_or_path", "auto_map")} | changed


def test_tying_and_dtype_can_be_stated_anew():
  cut = cut_config(CONFIG | {"torch_dtype": "float16", "dtype": "float16"}, (0,), tied=True, dtype="float32")
  assert (cut["tie_word_embeddings"], cut["dtype"], cut["torch_dtype"]) == (True, "float32", "float32")


LISTS = st.dictionaries(
  st.from_regex(r"[a-z]{3,8}_list", fullmatch=True),
  st.lists(st.integers() | st.text(max_size=3), max_size=8),
  max_size=5,
)


@given(data=st.data(), lists=LISTS, layers=st.integers(2, 8))
def test_every_list_of_one_entry_a_layer_follows_the_layers(data, lists, layers):
  keep = sorted(data.draw(st.sets(st.integers(0, layers - 1), min_size=1)))
  mapped = {"per_layer_map": {str(layer): layer for layer in range(layers)}}
  cut = cut_config(CONFIG | lists | mapped | {"num_hidden_layers": layers, "nested": lists}, keep)
  for key, value in lists.items():
    wanted = [value[layer] for layer in keep] if len(value) == layers else value
    assert cut[key] == cut["nested"][key] == wanted
  assert cut["per_layer_map"] == {str(new): old for new, old in enumerate(keep)}


def test_layer_indices_and_counts_of_first_layers_are_renumbered():
  source = CONFIG | {
    "mlp_only_layers": [0, 2],
    "max_window_layers": 3,
    "pruned_heads": {"3": [1]},
    "layer_types": list("abcd"),
  }
  cut = cut_config(source, (1, 2, 3))
  assert (cut["mlp_only_layers"], cut["max_window_layers"], cut["pruned_heads"]) == ([1], 2, {"2": [1]})
  assert cut["layer_types"] == ["b", "c", "d"]


def test_layers_outside_the_model_are_refused():
  with pytest.raises(UsageError, match="layer 4 is outside a model of 4 layers"):
    cut_config(CONFIG, (0, 4))
