"""A tiny Hugging Face model folder, written by the safetensors and tokenizers libraries: what the tests start from."""

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import safetensors.numpy
import tokenizers

from jaxchop.hub import names
from jaxchop.hub.hf_config import parse_config

CONFIG = {
  "architectures": ["LlamaForCausalLM"],
  "model_type": "llama",
  "vocab_size": 96,
  "hidden_size": 32,
  "intermediate_size": 48,
  "num_hidden_layers": 4,
  "num_attention_heads": 4,
  "num_key_value_heads": 2,
  "head_dim": 8,
  "max_position_embeddings": 64,
  "rms_norm_eps": 1e-05,
  "rope_theta": 500000.0,
  "tie_word_embeddings": False,
  "bos_token_id": 1,
  "eos_token_id": [2, 3],
  "torch_dtype": "bfloat16",
  "_name_or_path": "/somewhere/else",
}
TEMPLATE = "{% for message in messages %}<s>{{ message.content }}{% endfor %}"
DTYPES = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16, "float32": np.float32}


def write_folder(folder: Path, *, dtype: str = "bfloat16", shards: int = 1, seed: int = 0, **settings) -> Path:
  """Writes a random model with everything that a real folder has, and returns the folder."""
  folder.mkdir(parents=True)
  config = {**CONFIG, "torch_dtype": dtype, **settings}
  rng = np.random.default_rng(seed)
  shapes = names.expected(parse_config(config, "config.json"), config["num_hidden_layers"])
  tensors = {
    name: ((np.ones(shape) if "norm" in name else 0) + rng.normal(0, 0.1, shape)).astype(DTYPES[dtype])
    for name, shape in shapes.items()
  }
  write_weights(folder, tensors, shards)
  (folder / "config.json").write_text(json.dumps(config, indent=2))
  (folder / "generation_config.json").write_text('{"eos_token_id": [2, 3],\n "temperature": 0.6}')
  (folder / "LICENSE.txt").write_text("Take it.\n")
  (folder / "NOTICE").write_text("Built with care.\n")
  write_tokenizer(folder, config["vocab_size"])
  return folder


def write_weights(folder: Path, tensors: dict[str, np.ndarray], shards: int = 1) -> None:
  """Writes the tensors into one file, or deals them out to several with an index."""
  if shards == 1:
    safetensors.numpy.save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return
  dealt = [dict(list(tensors.items())[i::shards]) for i in range(shards)]
  weight_map = {}
  for i, part in enumerate(dealt, 1):
    file = f"model-{i:05d}-of-{shards:05d}.safetensors"
    safetensors.numpy.save_file(part, folder / file, {"format": "pt"})
    weight_map |= dict.fromkeys(part, file)
  index = {"metadata": {"total_size": sum(t.nbytes for t in tensors.values())}, "weight_map": weight_map}
  (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def write_tokenizer(folder: Path, size: int) -> None:
  """Writes a byte-level tokenizer whose ids stay below `size`, with its chat template in tokenizer_config.json."""
  letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())[: size - 4]
  vocab = {token: i for i, token in enumerate(["<unk>", "<s>", "</s>", "<|end|>", *letters])}
  tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, [], unk_token="<unk>"))
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = tokenizers.decoders.ByteLevel()
  tokenizer.add_special_tokens(["<s>", "</s>", "<|end|>"])
  tokenizer.save(str(folder / "tokenizer.json"))
  settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
  (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": TEMPLATE}))
  (folder / "special_tokens_map.json").write_text('{"bos_token":"<s>",   "eos_token":"</s>"}')


def read_weights(folder: Path) -> dict[str, np.ndarray]:
  """Returns all tensors of a folder as the safetensors library reads them."""
  tensors = {}
  for file in sorted(folder.glob("*.safetensors")):
    tensors |= safetensors.numpy.load_file(file)
  return tensors
