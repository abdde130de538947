"""One table names every parameter in both directions."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxchop.errors import UsageError
from jaxchop.hub import names
from jaxchop.model.config import LlamaConfig
from jaxchop.model.tree import abstract, flatten

SHAPE = {"vocab_size": 64, "width": 16, "mlp_width": 40, "heads": 4, "kv_heads": 2, "head_dim": 8}
CONFIGS = [
  LlamaConfig(**SHAPE, norm_eps=1e-5, max_positions=128),
  LlamaConfig(**SHAPE, norm_eps=1e-5, max_positions=128, tied=True, attention_bias=True, mlp_bias=True),
]


@pytest.mark.parametrize("config", CONFIGS)
def test_each_parameter_has_one_name_and_finds_back(config):
  parameters = flatten(abstract(config, 11))
  assert [names.dotted_name(names.hf_name(name)) for name in parameters] == list(parameters)
  assert {names.hf_name(name) for name in parameters} == set(names.expected(config, 11))


@pytest.mark.parametrize("config", CONFIGS)
def test_shapes_are_those_of_our_parameters_transposed_where_the_table_says(config):
  shapes = names.expected(config, 3)
  for name, leaf in flatten(abstract(config, 3)).items():
    assert shapes[names.hf_name(name)] == (leaf.shape[::-1] if names.transposed(name) else leaf.shape)


def test_linear_layers_and_the_head_are_transposed_and_the_embedding_is_not():
  shapes = names.expected(CONFIGS[0], 1)
  assert shapes["model.layers.0.self_attn.k_proj.weight"] == (16, 16)
  assert shapes["model.layers.0.self_attn.o_proj.weight"] == (16, 32)
  assert shapes["model.layers.0.mlp.down_proj.weight"] == (16, 40)
  assert shapes["model.embed_tokens.weight"] == shapes["lm_head.weight"] == (64, 16)


def test_a_tied_model_has_no_head_and_an_unbiased_one_no_bias():
  assert "lm_head.weight" not in names.expected(CONFIGS[1], 1)
  assert "model.layers.0.self_attn.o_proj.bias" in names.expected(CONFIGS[1], 1)
  assert not any(name.endswith("bias") for name in names.expected(CONFIGS[0], 1))


@pytest.mark.parametrize(
  "name",
  ["model.layers.01.mlp.up_proj.weight", "model.layers.*.mlp.up_proj.weight", "layers.0.mlp", "lm_head.bias", ""],
)
def test_a_name_outside_the_family_is_refused(name):
  with pytest.raises(KeyError):
    names.dotted_name(name)
  with pytest.raises(KeyError):
    names.hf_name(name)


@given(st.sets(st.integers(0, 39), min_size=1))
def test_renumbering_keeps_the_order_and_drops_the_rest(kept):
  keep = tuple(sorted(kept))
  renumbered = {old: names.renumber(f"model.layers.{old}.input_layernorm.weight", keep) for old in range(40)}
  assert [old for old, new in renumbered.items() if new] == list(keep)
  assert [names.layer_of(new) for new in renumbered.values() if new] == list(range(len(keep)))
  assert names.renumber("model.norm.weight", keep) == "model.norm.weight"


def test_stored_rotary_frequencies_are_ignorable_and_nothing_else_is():
  assert names.ignorable("model.layers.7.self_attn.rotary_emb.inv_freq")
  assert not any(names.ignorable(name) for name in names.expected(CONFIGS[1], 2))


@pytest.mark.parametrize(
  ("keep", "complaint"), [((), "no layer"), ((0, 4), "outside"), ((-1,), "outside"), ((1, 0), "rise"), ((1, 1), "rise")]
)
def test_a_keep_list_must_rise_within_the_model(keep, complaint):
  with pytest.raises(UsageError, match=complaint):
    names.checked_keep(keep, 4)
