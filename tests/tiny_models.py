"""Small Llama folders with random weights, made on the spot: what the fixture `tiny_folder` is built from."""

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from jaxchop.hub import names
from jaxchop.hub.hf_config import layer_count, parse_config

CONFIG = {
  "architectures": ["LlamaForCausalLM"],
  "model_type": "llama",
  "vocab_size": 320,
  "hidden_size": 16,
  "intermediate_size": 40,
  "num_hidden_layers": 4,
  "num_attention_heads": 4,
  "num_key_value_heads": 2,
  "head_dim": 8,
  "hidden_act": "silu",
  "rms_norm_eps": 1e-5,
  "max_position_embeddings": 128,
  "rope_theta": 10000.0,
  "rope_scaling": None,
  "attention_bias": False,
  "mlp_bias": False,
  "tie_word_embeddings": False,
  "bos_token_id": 1,
  "eos_token_id": 2,
  "pad_token_id": 0,
  "torch_dtype": "float32",
}
TEMPLATE = (
  "{% for message in messages %}<|start|>{{ message['role'] }}\n{{ message['content'] }}<|end|>\n{% endfor %}"
  "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
TEXT = (
  "The layers of a model are a list, and to drop some layers in the middle of the list is to slice the list. "
  "What a language model loses when its depth is cut, further training on plain text gives back in large part. "
  "Whether the answers of the smaller model are as good as those of the larger one is measured, never assumed."
)
ROLES = {"pad_token": "<|pad|>", "bos_token": "<|start|>", "eos_token": "<|end|>", "unk_token": "<|pad|>"}
DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


def tokenizer() -> Tokenizer:
  """Returns a byte-level BPE of 320 tokens, the first three special."""
  tokenizer = Tokenizer(models.BPE())
  tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = decoders.ByteLevel()
  special = [AddedToken(token, special=True) for token in ("<|pad|>", "<|start|>", "<|end|>")]
  alphabet = pre_tokenizers.ByteLevel.alphabet()
  trainer = trainers.BpeTrainer(
    vocab_size=CONFIG["vocab_size"], special_tokens=special, initial_alphabet=alphabet, show_progress=False
  )
  tokenizer.train_from_iterator([TEXT] * 20, trainer)
  assert tokenizer.get_vocab_size() == CONFIG["vocab_size"]
  return tokenizer


def random_weights(config: dict[str, Any], dtype: str = "float32", seed: int = 0) -> dict[str, np.ndarray]:
  """Returns {Hugging Face name: weights} whose logits are not all alike: norms about 1, the rest about 0.1."""
  rng = np.random.default_rng(seed)
  shapes = names.expected(parse_config(config, "tiny"), layer_count(config))
  weights = {name: rng.normal(1.0 if "norm" in name else 0.0, 0.1, shape) for name, shape in shapes.items()}
  return {name: weight.astype(DTYPES[dtype]) for name, weight in weights.items()}


def write_weights(folder: Path, weights: dict[str, np.ndarray], shards: int = 1) -> None:
  """Writes one model.safetensors, or several shards with their index."""
  if shards == 1:
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return
  ordered, weight_map = sorted(weights), {}
  for number in range(shards):
    part, file = ordered[number::shards], f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
    save_file({name: weights[name] for name in part}, folder / file, metadata={"format": "pt"})
    weight_map |= dict.fromkeys(part, file)
  index = {"metadata": {"total_size": sum(w.nbytes for w in weights.values())}, "weight_map": weight_map}
  (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def write_tokenizer(folder: Path, tokenizer: Tokenizer, config: dict[str, Any]) -> None:
  """Writes tokenizer, chat template and generation settings as transformers lays them out."""
  tokenizer.save(str(folder / "tokenizer.json"))
  ids = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id") if key in config}
  length = config["max_position_embeddings"]
  settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": length, **ROLES}
  (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": TEMPLATE}, indent=2))
  (folder / "special_tokens_map.json").write_text(json.dumps(ROLES, indent=2))
  (folder / "generation_config.json").write_text(json.dumps(ids, indent=2))
  (folder / "chat_template.jinja").write_text(TEMPLATE)
