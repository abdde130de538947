"""A GGUF file is the same model as the Hugging Face folder it was converted from, up to its quantisation."""

import itertools
import json
import pydoc_data.topics
from pathlib import Path

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_models
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

from jaxchop.errors import JaxchopError
from jaxchop.hub import names
from jaxchop.hub.gguf_rope import llama3_divisors
from jaxchop.hub.gguf_tokenizer import build_tokenizer
from jaxchop.hub.hf_config import parse_config
from jaxchop.hub.load import load_model, open_checkpoint
from jaxchop.hub.tokenizer import eos_ids, load_tokenizer

# Widths of 256, as the largest blocks of the quantised formats need.
WIDE = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "head_dim": 64}
TYPES = gguf.GGMLQuantizationType
GGUF_NAMES = {
  "model.embed_tokens": "token_embd",
  "model.norm": "output_norm",
  "lm_head": "output",
  "model.layers": "blk",
  "input_layernorm": "attn_norm",
  "post_attention_layernorm": "ffn_norm",
  "self_attn.q_proj": "attn_q",
  "self_attn.k_proj": "attn_k",
  "self_attn.v_proj": "attn_v",
  "self_attn.o_proj": "attn_output",
  "mlp.gate_proj": "ffn_gate",
  "mlp.up_proj": "ffn_up",
  "mlp.down_proj": "ffn_down",
}


@jax.jit
def logits(model, ids_BT):
  return model(ids_BT)


def permute(weight, heads):
  """As convert_hf_to_gguf.py of llama.cpp stores q and k."""
  return weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def converted(name, weight, config):
  if "q_proj" in name:
    weight = permute(weight, config["num_attention_heads"])
  if "k_proj" in name:
    weight = permute(weight, config["num_key_value_heads"])
  for theirs, ours in GGUF_NAMES.items():
    name = name.replace(theirs, ours)
  return name, weight


def write_gguf(path, config, weights, tokenizer, *, kind=TYPES.F32, extra=None):
  """Writes a model as llama.cpp's converter does: matrices as `kind`, vectors as F32."""
  writer = gguf.GGUFWriter(str(path), "llama")
  writer.add_context_length(config["max_position_embeddings"])
  writer.add_embedding_length(config["hidden_size"])
  writer.add_feed_forward_length(config["intermediate_size"])
  writer.add_block_count(config["num_hidden_layers"])
  writer.add_head_count(config["num_attention_heads"])
  writer.add_head_count_kv(config["num_key_value_heads"])
  writer.add_key_length(config["head_dim"])
  writer.add_value_length(config["head_dim"])
  writer.add_rope_dimension_count(config["head_dim"])
  writer.add_rope_freq_base(config["rope_theta"])
  writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
  writer.add_vocab_size(config["vocab_size"])
  writer.add_tokenizer_model("gpt2")
  writer.add_tokenizer_pre("gpt-2")
  vocabulary = tokenizer.get_vocab()
  writer.add_token_list(sorted(vocabulary, key=vocabulary.get))
  writer.add_token_types([3] * 3 + [1] * (len(vocabulary) - 3))
  merges = json.loads(tokenizer.to_str())["model"]["merges"]
  writer.add_token_merges([" ".join(pair) for pair in merges])
  writer.add_bos_token_id(1)
  writer.add_eos_token_id(2)
  writer.add_pad_token_id(0)
  writer.add_unk_token_id(0)
  writer.add_chat_template(tiny_models.TEMPLATE)
  if extra:
    extra(writer)
  for name, weight in weights.items():
    name, weight = converted(name, weight, config)
    type_ = kind if weight.ndim == 2 else TYPES.F32
    writer.add_tensor(name, gguf.quantize(weight, type_), raw_dtype=type_)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return str(path)


@pytest.fixture
def make(tmp_path, tiny_tokenizer):
  """`make(kind=..., extra=..., change=..., **settings)` returns a GGUF file's name, its config and its weights."""

  def made(*, kind=TYPES.F32, extra=None, change=None, **settings):
    config = {**tiny_models.CONFIG, **settings}
    weights = tiny_models.random_weights(config)
    if change:
      change(weights)
    return write_gguf(tmp_path / "m.gguf", config, weights, tiny_tokenizer, kind=kind, extra=extra), config, weights

  return made


def refusal(name):
  with pytest.raises(JaxchopError) as caught:
    open_checkpoint(name)
  assert "\n" not in str(caught.value) and name in str(caught.value)
  return str(caught.value)


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


LLAMA3 = {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}


@pytest.mark.parametrize(("factor", "length"), [(8.0, 8192), (32.0, 8192), (4.0, 4096)])
def test_llama3_scaling_is_found_again_from_its_factors(make, factor, length):
  scaling = LLAMA3 | {"factor": factor, "original_max_position_embeddings": length}
  divisors = llama3_divisors(scaling, 5e5, 32).astype(np.float32)
  name, config, _ = make(**WIDE, rope_theta=5e5, extra=lambda w: w.add_tensor("rope_freqs.weight", divisors))
  assert open_checkpoint(name).architecture.rope == parse_config(config | {"rope_scaling": scaling}, "x").rope


@given(st.sampled_from([8.0, 32.0]), st.sampled_from([64, 128]))
def test_the_factors_divide_the_frequencies_as_the_model_does(factor, head_dim):
  from jaxchop.model.rope import rotation

  scaling = LLAMA3 | {"factor": factor, "original_max_position_embeddings": 8192}
  base = {**tiny_models.CONFIG, "rope_theta": 5e5, "head_dim": head_dim}
  ones = jnp.ones((1, 1), jnp.int32)
  angle = {
    s: np.arctan2(*rotation(parse_config(base | {"rope_scaling": c}, "x"), ones)[::-1])
    for s, c in (("p", None), ("s", scaling))
  }
  assert np.allclose(angle["p"][0, 0] / angle["s"][0, 0], llama3_divisors(scaling, 5e5, head_dim // 2), rtol=1e-4)


def test_factors_of_another_scaling_are_refused(make):
  divisors = np.linspace(1, 3, 4, dtype=np.float32)
  assert "rope_freqs.weight" in refusal(make(extra=lambda w: w.add_tensor("rope_freqs.weight", divisors))[0])


def test_factors_of_one_are_no_scaling(make):
  name, config, _ = make(extra=lambda w: w.add_tensor("rope_freqs.weight", np.ones(4, np.float32)))
  assert open_checkpoint(name).architecture == parse_config(config, "x")


def test_linear_and_yarn_scaling_are_read(make):
  def linear(writer):
    writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
    writer.add_rope_scaling_factor(4.0)

  def yarn(writer):
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(4.0)
    writer.add_rope_scaling_orig_ctx_len(32)
    writer.add_rope_scaling_yarn_beta_fast(16.0)

  rope = open_checkpoint(make(extra=linear)[0]).architecture.rope
  assert (rope.kind, rope.factor) == ("linear", 4.0)
  rope = open_checkpoint(make(extra=yarn)[0]).architecture.rope
  assert (rope.kind, rope.factor, rope.original_max_positions, rope.beta_fast) == ("yarn", 4.0, 32, 16.0)


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


def test_a_file_cut_short_anywhere_is_refused(make, tmp_path):
  raw = Path(make(num_hidden_layers=1)[0]).read_bytes()
  for length in [*range(0, 64), *np.linspace(64, len(raw) - 1, 60, dtype=int)]:
    (tmp_path / "cut.gguf").write_bytes(raw[:length])
    refusal(str(tmp_path / "cut.gguf"))


def test_lengths_that_lie_are_refused_before_memory_is_taken(make, tmp_path):
  raw = Path(make(num_hidden_layers=1)[0]).read_bytes()
  huge = (2**60).to_bytes(8, "little")
  tokens = raw.index(b"tokenizer.ggml.tokens") + len(b"tokenizer.ggml.tokens") + 8
  types = raw.index(b"tokenizer.ggml.token_type") + len(b"tokenizer.ggml.token_type") + 8
  first_text = raw.index(b"llama", 24 + 8 + len("general.architecture")) - 8
  tensor = raw.index(b"token_embd.weight") + len("token_embd.weight") + 4
  for position in (8, 16, tokens, types, first_text, tensor):
    (tmp_path / "lie.gguf").write_bytes(raw[:position] + huge + raw[position + 8 :])
    refusal(str(tmp_path / "lie.gguf"))


def test_a_count_of_layers_that_no_file_could_hold_is_refused_at_once(make, tmp_path):
  raw = bytearray(Path(make(num_hidden_layers=1)[0]).read_bytes())
  count = raw.index(b"llama.block_count") + len("llama.block_count") + 4
  raw[count : count + 4] = (2**30).to_bytes(4, "little")
  (tmp_path / "lie.gguf").write_bytes(raw)
  assert "1,073,741,824 layers" in refusal(str(tmp_path / "lie.gguf"))


@given(data=st.data())
def test_no_flipped_byte_of_the_header_escapes_as_anything_but_a_refusal(data, tmp_path_factory, tiny_tokenizer):
  folder = tmp_path_factory.getbasetemp()
  if not (folder / "whole.gguf").exists():
    config = {**tiny_models.CONFIG, "num_hidden_layers": 1}
    write_gguf(folder / "whole.gguf", config, tiny_models.random_weights(config), tiny_tokenizer)
  raw = bytearray((folder / "whole.gguf").read_bytes())
  raw[data.draw(st.integers(0, len(raw) - 40_000))] = data.draw(st.integers(0, 255))
  (folder / "flip.gguf").write_bytes(raw)
  try:
    open_checkpoint(str(folder / "flip.gguf"))
  except JaxchopError as error:
    assert "\n" not in str(error)


def test_the_tokenizer_is_the_one_that_was_converted(make, tiny_tokenizer):
  checkpoint = open_checkpoint(make()[0])
  tokenizer = load_tokenizer(checkpoint)
  for text in (tiny_models.TEXT, "1234 äöü\n\n\tx  y", "<|start|>user\nhi<|end|>"):
    assert tokenizer.encode(text) == tiny_tokenizer.encode(text).ids
  assert (
    tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "<|start|>user\nhi<|end|>\n"
  )
  assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 0)
  assert set(checkpoint.assets) >= {
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
  }


def test_an_end_of_turn_ends_a_text_too(make):
  assert eos_ids(open_checkpoint(make(extra=lambda w: w.add_eot_token_id(5))[0])) == (2, 5)


def metadata(tokenizer, **settings):
  vocabulary = tokenizer.get_vocab()
  merges = json.loads(tokenizer.to_str())["model"]["merges"]
  base = {
    "model": "gpt2",
    "tokens": sorted(vocabulary, key=vocabulary.get),
    "merges": [" ".join(pair) for pair in merges],
  }
  return {f"tokenizer.ggml.{key}": value for key, value in (base | settings).items()}


SAMPLES = [
  "I've 12345 layers",
  "  two  spaces\n\n\nlines",
  "x²½ ٣٤ 數字123",
  "don't DON'T",
  "a\r\nb\t",
  "",
  " ",
  "naïve — “quotes”…",
]


@given(st.text() | st.sampled_from(SAMPLES))
def test_smollm_cuts_words_as_its_official_tokenizer_does(tiny_tokenizer, text):
  ours = build_tokenizer(metadata(tiny_tokenizer, pre="smollm"), "x")
  official = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
  wanted = pre_tokenizers.Sequence(official).pre_tokenize_str(text)
  assert ours.pre_tokenizer.pre_tokenize_str(text) == wanted
  assert ours.decode(ours.encode(text).ids) == text


def test_llama3_groups_digits_by_three_and_begins_with_bos(tiny_tokenizer):
  ours = build_tokenizer(metadata(tiny_tokenizer, pre="llama-bpe", bos_token_id=1, token_type=[3] * 3 + [1] * 317), "x")
  assert [word for word, _ in ours.pre_tokenizer.pre_tokenize_str("I'VE 12345")] == ["I", "'VE", "Ġ", "123", "45"]
  assert ours.encode("The list").ids[0] == 1
  assert ours.encode("The list", "the list").ids.count(1) == 2


@pytest.mark.parametrize(
  ("settings", "complaint"),
  [
    ({"model": "bert"}, "tokenizer.ggml.model is bert"),
    ({"pre": "deepseek-llm"}, "tokenizer.ggml.pre is deepseek-llm"),
    ({"token_type": [1]}, "token_type"),
    ({"merges": []}, "merges"),
    ({"merges": ["a b c"]}, "merges"),
    ({"tokens": ["a", "a"]}, "tokens"),
    ({"model": "llama", "scores": [0.0]}, "scores"),
  ],
)
def test_a_tokenizer_that_cannot_be_rebuilt_is_refused_by_key(tiny_tokenizer, settings, complaint):
  with pytest.raises(JaxchopError, match=f"^file.gguf: .*{complaint}"):
    build_tokenizer(metadata(tiny_tokenizer, **settings), "file.gguf")


@pytest.fixture(scope="module")
def pieces():
  """A SentencePiece-like vocabulary: specials, bytes, then pieces with falling scores."""
  words = ["▁", "t", "h", "e", "l", "i", "s", "a", "▁t", "he", "▁the", "▁l", "▁li", "st", "▁list", "is", "▁a", "th"]
  tokens = ["<unk>", "<s>", "</s>", *[f"<0x{byte:02X}>" for byte in range(256)], *words]
  scores = [0.0] * 259 + [-float(rank) for rank in range(len(words))]
  kinds = [2, 3, 3, *[6] * 256, *[1] * len(words)]
  return {
    "model": "llama",
    "tokens": tokens,
    "scores": scores,
    "token_type": kinds,
    "bos_token_id": 1,
    "eos_token_id": 2,
  }


def spm(pieces, **settings):
  return build_tokenizer({f"tokenizer.ggml.{key}": value for key, value in (pieces | settings).items()}, "x")


def test_sentencepiece_joins_the_best_scored_pieces_and_falls_back_to_bytes(pieces):
  tokenizer = spm(pieces)
  assert tokenizer.encode("the list").tokens == ["<s>", "▁the", "▁list"]
  assert tokenizer.encode("aé").tokens == ["<s>", "▁a", "<0xC3>", "<0xA9>"]
  assert spm(pieces, add_bos_token=False, add_eos_token=True).encode("a").tokens == ["▁a", "</s>"]


@given(st.text(alphabet="thelisa é數\n", max_size=30))
def test_sentencepiece_gives_back_the_text(pieces, text):
  for prefix in (True, False):
    tokenizer = spm(pieces, add_space_prefix=prefix)
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def best_first(text, scores):
  """Joins neighbours by the best score of the result, leftmost first, as llama.cpp's llm_tokenizer_spm."""
  symbols = list(text)
  while True:
    joins = [(scores[a + b], -at) for at, (a, b) in enumerate(itertools.pairwise(symbols)) if a + b in scores]
    if not joins:
      return symbols
    at = -max(joins)[1]
    symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]


@given(st.text(alphabet="thelisa ", min_size=1, max_size=30))
def test_sentencepiece_pieces_are_those_of_llama_cpp(pieces, text):
  scores = dict(zip(pieces["tokens"][259:], pieces["scores"][259:], strict=True))
  tokens = spm(pieces, add_bos_token=False).encode(text).tokens
  assert tokens == best_first("▁" + text.replace(" ", "▁"), scores)


@pytest.mark.real
def test_smollm2_has_the_parameters_and_settings_of_its_card(smollm2):
  checkpoint = open_checkpoint("builtin")
  assert checkpoint.path == smollm2
  assert (checkpoint.parameters, checkpoint.layers) == (134_515_008, 30)
  config = checkpoint.architecture
  assert (config.heads, config.kv_heads, config.rope.theta, config.tied) == (9, 3, 100_000.0, True)
  assert checkpoint.config["rms_norm_eps"] == 1e-5


@pytest.mark.real
def test_smollm2_s_tokenizer_gives_back_any_text_and_knows_its_special_tokens(smollm2):
  tokenizer = load_tokenizer(open_checkpoint("builtin"))
  text = "\n".join(pydoc_data.topics.topics.values())[:200_000]
  assert tokenizer.decode(tokenizer(text, verbose=False)["input_ids"]) == text
  chat = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False, add_generation_prompt=True)
  assert chat.endswith("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n")
  assert tokenizer.encode(chat).count(1) == 3 and tokenizer.encode(chat).count(2) == 2


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
