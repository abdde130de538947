"""A GGUF file is the same model as the Hugging Face folder it was converted from, up to its quantisation."""

import pydoc_data.topics

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_models
from gguf_files import TYPES, refusal, write_gguf
from hypothesis import given
from hypothesis import strategies as st

from jaxchop.hub import names
from jaxchop.hub.hf_config import parse_config
from jaxchop.hub.load import load_model, open_checkpoint
from jaxchop.hub.tokenizer import load_tokenizer

# Widths of 256, as the largest blocks of the quantised formats need.
WIDE = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "head_dim": 64}


@jax.jit
def logits(model, ids_BT):
  return model(ids_BT)


WRITABLE = ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "TQ1_0", "TQ2_0", "MXFP4"]


@pytest.mark.parametrize("kind", WRITABLE)
def test_weights_are_what_the_gguf_library_quantised_in_hugging_face_s_order(make, kind):
  kind = TYPES[kind]
  name, _, weights = make(kind=kind, **WIDE)
  checkpoint = open_checkpoint(name)
  assert checkpoint.tensors.keys() == weights.keys()
  for key, weight in weights.items():
    stored = kind if weight.ndim == 2 else TYPES.F32
    # Quantisation works along rows, and undoing the permutation moves whole rows only.
    wanted = gguf.dequantize(gguf.quantize(weight, stored), stored)
    assert np.array_equal(checkpoint.tensors[key].read().astype(np.float32), wanted), key


def test_plain_files_keep_their_element_type(make):
  for kind, dtype in (("F16", "float16"), ("BF16", "bfloat16"), ("F32", "float32"), ("Q8_0", "float32")):
    checkpoint = open_checkpoint(make(kind=TYPES[kind], **WIDE)[0])
    assert checkpoint.tensors[names.EMBEDDING].dtype.name == dtype
    assert checkpoint.config["torch_dtype"] == checkpoint.config["dtype"] == dtype


def block_types():
  unsupported = {"Q8_1", "Q8_K", "I8", "I16", "I32", "I64", "F64", "Q1_0"}
  return [kind for kind in TYPES if kind.name not in {*WRITABLE, *unsupported}]


@pytest.mark.parametrize("kind", block_types(), ids=lambda kind: kind.name)
def test_formats_that_the_library_only_reads_are_dequantised_by_it(make, kind):
  block, size = gguf.GGML_QUANT_SIZES[kind]
  raw = np.random.default_rng(0).integers(0, 60, (512, 256 // block * size), dtype=np.uint8)

  def extra(writer):
    writer.add_tensor("blk.0.ffn_up.weight", raw, raw_dtype=kind)

  name, _, _ = make(**WIDE, extra=extra, change=lambda weights: weights.pop("model.layers.0.mlp.up_proj.weight"))
  found = open_checkpoint(name).tensors["model.layers.0.mlp.up_proj.weight"].read()
  assert np.array_equal(found, gguf.dequantize(raw, kind), equal_nan=True)


@pytest.mark.parametrize("kind", ["I32", "F64", "Q8_K"])
def test_a_packing_that_cannot_be_undone_is_refused_by_name(make, kind):
  block, size = gguf.GGML_QUANT_SIZES[TYPES[kind]]
  raw = np.zeros((1, 256 // block * size), np.uint8)
  message = refusal(make(extra=lambda writer: writer.add_tensor("x.weight", raw, raw_dtype=TYPES[kind]))[0])
  assert "x.weight" in message and kind in message


@pytest.fixture(scope="module")
def quantised(tmp_path_factory, tiny_tokenizer):
  """An opened file whose q and k are permuted, with biases."""
  config = {**tiny_models.CONFIG, **WIDE, "num_hidden_layers": 1, "attention_bias": True}
  path = tmp_path_factory.mktemp("quantised") / "m.gguf"
  return open_checkpoint(write_gguf(path, config, tiny_models.random_weights(config), tiny_tokenizer, kind=TYPES.Q8_0))


PARTS = st.builds(slice, st.none() | st.integers(-300, 300), st.none() | st.integers(-300, 300))


@given(data=st.data(), rows=PARTS, columns=PARTS)
def test_a_slice_is_the_slice_of_the_whole(quantised, data, rows, columns):
  tensor = quantised.tensors[data.draw(st.sampled_from(sorted(quantised.tensors)))]
  index = (rows, columns)[: len(tensor.shape)]
  assert np.array_equal(tensor.read(index), tensor.read()[index])


@pytest.mark.parametrize("settings", [{}, {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}])
def test_the_architecture_is_that_of_the_folder(make, settings):
  name, config, weights = make(**settings)
  checkpoint = open_checkpoint(name)
  assert checkpoint.architecture == parse_config(config, "config.json")
  model = load_model(checkpoint)
  assert np.array_equal(model.layers[1].attention.q.kernel[...], weights["model.layers.1.self_attn.q_proj.weight"].T)


def test_the_same_logits_come_from_a_folder_and_from_its_gguf(make, tiny_folder):
  settings = {"tie_word_embeddings": True, "num_key_value_heads": 1}
  ids = jnp.arange(40)[None]
  ours, theirs = (open_checkpoint(name) for name in (make(**settings)[0], str(tiny_folder(**settings))))
  assert np.array_equal(logits(load_model(ours), ids), logits(load_model(theirs), ids))


UNSUPPORTED = {
  "experts": (lambda w: w.add_expert_count(8), "llama.expert_count is 8"),
  "sliding window": (lambda w: w.add_sliding_window(4096), "llama.attention.sliding_window is 4096"),
  "logit scale": (lambda w: w.add_logit_scale(0.5), "llama.logit_scale is 0.5"),
  "longrope": (lambda w: w.add_rope_scaling_type(gguf.RopeScalingType.LONGROPE), "llama.rope.scaling.type is longrope"),
  "yarn multiplier": (lambda w: w.add_rope_scaling_yarn_log_mul(0.1), "yarn_log_multiplier"),
  "looking ahead": (lambda w: w.add_causal_attention(False), "llama.attention.causal is False"),
  "a part of several": (lambda w: w.add_uint16("split.count", 2), "one part of a split model"),
  "a factor that is text": (lambda w: w.add_string("llama.rope.scaling.factor", "4"), "scaling.factor is 4"),
  "strange tensor": (lambda w: w.add_tensor("blk.0.spy.weight", np.ones(4, np.float32)), "blk.0.spy.weight"),
}


@pytest.mark.parametrize("case", UNSUPPORTED)
def test_what_is_not_supported_is_refused_by_name(make, case):
  extra, complaint = UNSUPPORTED[case]
  assert complaint in refusal(make(extra=extra)[0])


def test_another_architecture_is_refused(tmp_path):
  writer = gguf.GGUFWriter(str(tmp_path / "q.gguf"), "qwen2")
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  assert "general.architecture is qwen2" in refusal(str(tmp_path / "q.gguf"))


def test_a_missing_tensor_is_refused_by_name(make):
  name = make(change=lambda weights: weights.pop("model.layers.1.mlp.up_proj.weight"))[0]
  assert "model.layers.1.mlp.up_proj.weight is missing" in refusal(name)


@pytest.mark.real
def test_smollm2_has_the_parameters_and_settings_of_its_card(smollm2):
  checkpoint = open_checkpoint("builtin")
  assert checkpoint.path == smollm2
  assert (checkpoint.parameters, checkpoint.layers) == (134_515_008, 30)
  config = checkpoint.architecture
  assert (config.heads, config.kv_heads, config.rope.theta, config.tied) == (9, 3, 100_000.0, True)
  assert checkpoint.config["rms_norm_eps"] == 1e-5


@pytest.mark.slow
@pytest.mark.real
def test_smollm2_knows_its_capitals_and_its_python(smollm2):
  checkpoint = open_checkpoint(str(smollm2))
  tokenizer, model = load_tokenizer(checkpoint), load_model(checkpoint)

  def log_probabilities(ids):
    # One length, one compilation; what is padded behind a text does not change what comes before.
    padded_BT = jnp.zeros((1, 256), jnp.int32).at[0, : len(ids)].set(jnp.asarray(ids))
    return jax.nn.log_softmax(logits(model, padded_BT)[0, : len(ids)])

  ids = tokenizer.encode("The capital of France is")
  for _ in range(3):
    ids.append(int(log_probabilities(ids)[-1].argmax()))
  assert " Paris" in tokenizer.decode(ids)
  text = tokenizer.encode("\n".join(pydoc_data.topics.topics.values())[20_000:21_500])[:256]
  nll_T = -log_probabilities(text)[jnp.arange(len(text) - 1), jnp.asarray(text[1:])]
  assert len(text) == 256 and 5 < jnp.exp(nll_T.mean()) < 40
