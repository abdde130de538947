"""Small GGUF files as llama.cpp's converter writes them, and how a broken one is refused."""

import json

import gguf
import pytest
import tiny_models

from jaxchop.errors import JaxchopError
from jaxchop.hub.load import open_checkpoint

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


def refusal(name):
  with pytest.raises(JaxchopError) as caught:
    open_checkpoint(name)
  assert "\n" not in str(caught.value) and name in str(caught.value)
  return str(caught.value)
