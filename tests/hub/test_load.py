"""A model is opened by what a person calls it, checked to the last tensor, and loaded one tensor at a time."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_models
from jax.sharding import NamedSharding, PartitionSpec
from safetensors.numpy import load_file

from jaxchop.errors import JaxchopError, UsageError
from jaxchop.hub import names
from jaxchop.hub.load import load_model, open_checkpoint
from jaxchop.hub.tokenizer import eos_ids, load_tokenizer
from jaxchop.model.tree import flatten

TIED_AND_BIASED = {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}


def refusal(action, *args, kind=JaxchopError, **keywords):
  with pytest.raises(kind) as caught:
    action(*args, **keywords)
  assert "\n" not in str(caught.value)
  return str(caught.value)


def weights_of(folder):
  return {name: value for file in sorted(folder.glob("*.safetensors")) for name, value in load_file(file).items()}


def rewrite(folder, change, **keywords):
  weights = weights_of(folder)
  change(weights)
  tiny_models.write_weights(folder, weights, **keywords)
  return str(folder)


@pytest.mark.parametrize("settings", [{}, TIED_AND_BIASED], ids=["plain", "tied and biased"])
@pytest.mark.parametrize(("stored", "shards"), [("bfloat16", 3), ("float16", 1), ("float32", 2)])
def test_every_parameter_is_its_tensor(tiny_folder, settings, stored, shards):
  folder = tiny_folder(dtype=stored, shards=shards, **settings)
  weights = weights_of(folder)
  model = flatten(load_model(open_checkpoint(str(folder))))
  assert {names.hf_name(name) for name in model} == set(weights)
  for name, value in model.items():
    tensor = weights[names.hf_name(name)].astype(np.float32)
    assert value.dtype == jnp.float32
    assert np.array_equal(value, tensor.T if names.transposed(name) else tensor)


def test_bfloat16_stays_bfloat16_bit_by_bit(tiny_folder):
  folder = tiny_folder(dtype="bfloat16")
  weights = weights_of(folder)
  for name, value in flatten(load_model(open_checkpoint(str(folder)), dtype="bfloat16")).items():
    tensor = weights[names.hf_name(name)]
    assert np.asarray(value).tobytes() == (tensor.T if names.transposed(name) else tensor).tobytes()


def test_a_transposition_larger_than_its_tiles_is_whole(tiny_folder):
  folder = tiny_folder(intermediate_size=600, num_hidden_layers=1, hidden_size=264, head_dim=66)
  model = load_model(open_checkpoint(str(folder)))
  wanted = weights_of(folder)["model.layers.0.mlp.up_proj.weight"].T
  assert np.array_equal(model.layers[0].mlp.up.kernel[...], wanted)


def test_only_the_kept_layers_are_read(tiny_folder):
  checkpoint = open_checkpoint(str(tiny_folder(num_hidden_layers=6)))
  keep = (0, 2, 5)

  def unread(*_):
    raise AssertionError("a dropped layer was read")

  tensors = {
    name: tensor if names.renumber(name, keep) else dataclasses.replace(tensor, read=unread)
    for name, tensor in checkpoint.tensors.items()
  }
  small = flatten(load_model(dataclasses.replace(checkpoint, tensors=tensors), keep=keep))
  whole = flatten(load_model(checkpoint))
  for name, value in small.items():
    parts = name.split(".")
    source = ".".join(["layers", str(keep[int(parts[1])]), *parts[2:]]) if parts[0] == "layers" else name
    assert np.array_equal(value, whole[source])


@pytest.mark.parametrize("keep", [(), (4,), (1, 0)])
def test_layers_that_the_model_does_not_have_are_refused(tiny_folder, keep):
  refusal(load_model, open_checkpoint(str(tiny_folder())), keep=keep, kind=UsageError)


def test_each_shard_is_read_by_itself_and_only_once(tiny_folder):
  checkpoint = open_checkpoint(str(tiny_folder(dtype="bfloat16", num_hidden_layers=1)))
  mesh = jax.make_mesh((2, 2), ("fsdp", "data"), axis_types=(jax.sharding.AxisType.Explicit,) * 2)
  read = []

  def watched(tensor):
    def record(index=None):
      part = tensor.read(index)
      read.append(part.size)
      return part

    return dataclasses.replace(tensor, read=record)

  spied = dataclasses.replace(checkpoint, tensors={name: watched(t) for name, t in checkpoint.tensors.items()})
  spec = {1: PartitionSpec(None), 2: PartitionSpec("fsdp", None)}
  sharded = load_model(spied, dtype="float32", sharding=lambda name, shape: NamedSharding(mesh, spec[len(shape)]))
  assert sum(read) == checkpoint.parameters
  assert max(read) == checkpoint.architecture.vocab_size * checkpoint.architecture.width // 2
  whole = flatten(load_model(checkpoint))
  for name, value in flatten(sharded).items():
    assert value.sharding == NamedSharding(mesh, spec[value.ndim])
    assert np.array_equal(value, whole[name])


def test_a_parameter_without_a_sharding_goes_to_the_default_device(tiny_folder):
  model = load_model(open_checkpoint(str(tiny_folder())), sharding=lambda name, shape: None)
  assert all(value.sharding.device_set == {jax.devices()[0]} for value in flatten(model).values())


MEASURE = """
import sys
from jaxchop.hub.load import load_model, open_checkpoint
checkpoint = open_checkpoint(sys.argv[1])
import jax; jax.numpy.zeros(1).block_until_ready()
peak = lambda: 1024 * int(next(l for l in open("/proc/self/status") if l.startswith("VmHWM")).split()[1])
before = peak()
model = load_model(checkpoint, dtype="bfloat16")
print(peak() - before, checkpoint.size, max(t.bytes for t in checkpoint.tensors.values()))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's count of peak memory")
def test_loading_takes_the_model_and_about_one_tensor(tiny_folder):
  sizes = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 8, "num_attention_heads": 8}
  folder = tiny_folder(dtype="bfloat16", shards=2, head_dim=64, **sizes)
  output = subprocess.run(
    [sys.executable, "-c", MEASURE, str(folder)], check=True, capture_output=True, text=True
  ).stdout
  over, model, largest = map(int, output.split())
  # 48 MB for what XLA and the allocator take the first time; a second copy of the model would be 224 MB.
  assert model > 220e6
  assert over < model + largest + 48e6


def test_a_tied_model_may_store_its_head_again_if_it_is_the_embedding(tiny_folder):
  folder = tiny_folder(tie_word_embeddings=True)
  name = rewrite(folder, lambda weights: weights.update({names.HEAD: weights[names.EMBEDDING].copy()}))
  checkpoint = open_checkpoint(name)
  assert names.HEAD not in checkpoint.tensors
  assert load_model(checkpoint).head is None


def test_a_tied_model_with_another_head_is_refused(tiny_folder):
  folder = tiny_folder(tie_word_embeddings=True)
  name = rewrite(folder, lambda weights: weights.update({names.HEAD: weights[names.EMBEDDING] + 1}))
  message = refusal(open_checkpoint, name)
  assert "lm_head.weight" in message and "model.safetensors" in message and "tie_word_embeddings" in message


def test_rotary_frequencies_of_old_checkpoints_are_left_out(tiny_folder):
  key = "model.layers.0.self_attn.rotary_emb.inv_freq"
  name = rewrite(tiny_folder(), lambda weights: weights.update({key: np.ones(4, np.float32)}))
  assert key not in open_checkpoint(name).tensors


WRONG = "model.layers.1.mlp.up_proj.weight"
FAULTS = {
  "missing": (lambda w: w.pop(WRONG), f"tensor {WRONG} is missing"),
  "untied without a head": (lambda w: w.pop(names.HEAD), f"tensor {names.HEAD} is missing"),
  "extra": (lambda w: w.update(spy=w[WRONG]), "tensor spy in .*is not part of"),
  "layer too many": (lambda w: w.update({WRONG.replace("1", "9"): w[WRONG]}), "layers.9.*of 4 layers"),
  "wrong shape": (
    lambda w: w.update({WRONG: w[WRONG].T.copy()}),
    rf"tensor {WRONG} in .*\(16, 40\), expected \(40, 16\)",
  ),
  "wrong dtype": (lambda w: w.update({WRONG: w[WRONG].astype(np.int8)}), f"tensor {WRONG} in .*int8"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_tensors_that_are_not_the_architecture_s_are_refused_by_name(tiny_folder, fault):
  change, complaint = FAULTS[fault]
  folder = tiny_folder(shards=1)
  name = rewrite(folder, change)
  with pytest.raises(JaxchopError, match=complaint):
    open_checkpoint(name)
  assert str(folder) in refusal(open_checkpoint, name)


@pytest.mark.parametrize("name", ["no/such/folder/here", "nothing.gguf", "a folder", "org/name/x", "", "org/.."])
def test_a_name_that_is_no_model_is_refused(name, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "a folder").write_text("no")
  refusal(open_checkpoint, name)


def test_a_folder_without_config_is_refused_by_name(tmp_path):
  assert str(tmp_path / "config.json") in refusal(open_checkpoint, str(tmp_path))


def test_what_an_export_carries_along_is_found(tiny_folder):
  folder = tiny_folder()
  for extra in ("README.md", "modeling_evil.py", "pytorch_model.bin", "NOTICE.txt", "tokenizer.model"):
    (folder / extra).write_text(extra)
  (folder / "LICENSES").mkdir()
  assets = open_checkpoint(str(folder)).assets
  texts = {
    "LICENSE",
    "NOTICE.txt",
    "tokenizer.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "generation_config.json",
  }
  assert set(assets) == texts | {"chat_template.jinja", "special_tokens_map.json"}


def test_an_asset_that_is_a_link_out_of_the_folder_is_refused(tiny_folder, tmp_path):
  folder = tiny_folder()
  (tmp_path / "secret").write_text("secret")
  (folder / "NOTICE").symlink_to(tmp_path / "secret")
  assert "NOTICE is a link to" in refusal(open_checkpoint, str(folder))


def test_the_digest_is_that_of_names_dtypes_shapes_and_bytes_alone(tiny_folder):
  one = open_checkpoint(str(tiny_folder(shards=1))).digest()
  assert open_checkpoint(str(tiny_folder(shards=3))).digest() == one
  assert open_checkpoint(str(tiny_folder(seed=1))).digest() != one
  assert open_checkpoint(str(tiny_folder(dtype="float16"))).digest() != one


def test_the_digest_changes_with_one_bit(tiny_folder):
  folder = tiny_folder()
  before = open_checkpoint(str(folder)).digest()
  raw = bytearray((folder / "model.safetensors").read_bytes())
  raw[-1] ^= 1
  (folder / "model.safetensors").write_bytes(raw)
  assert open_checkpoint(str(folder)).digest() != before


def test_the_tokenizer_comes_with_its_chat_template(tiny_folder):
  tokenizer = load_tokenizer(open_checkpoint(str(tiny_folder())))
  assert tokenizer.decode(tokenizer.encode("The layers, 1 2 3: ünïcode")) == "The layers, 1 2 3: ünïcode"
  chat = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
  assert chat == "<|start|>user\nhi<|end|>\n"
  assert tokenizer.encode(chat)[0] == 1


def test_a_model_without_tokenizer_says_so(tiny_folder):
  folder = tiny_folder()
  for file in folder.glob("*token*"):
    file.unlink()
  assert "tokenizer" in refusal(load_tokenizer, open_checkpoint(str(folder)))


@pytest.mark.parametrize(("ids", "wanted"), [(2, (2,)), ([2, 0], (2, 0)), (None, ())])
def test_the_ids_that_end_a_text_may_be_one_or_several_or_none(tiny_folder, ids, wanted):
  assert eos_ids(open_checkpoint(str(tiny_folder(eos_token_id=ids)))) == wanted


def test_the_generation_settings_say_which_ids_end_a_text(tiny_folder):
  folder = tiny_folder(eos_token_id=2)
  (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, 2]}))
  assert eos_ids(open_checkpoint(str(folder))) == (0, 2)


@pytest.mark.parametrize("content", ["{", '{"eos_token_id": "2"}', '{"eos_token_id": [2, null]}'])
def test_broken_generation_settings_are_refused_by_name(tiny_folder, content):
  folder = tiny_folder()
  (folder / "generation_config.json").write_text(content)
  assert "generation_config.json" in refusal(eos_ids, open_checkpoint(str(folder)))


def test_a_broken_tokenizer_is_refused(tiny_folder):
  folder = tiny_folder()
  (folder / "tokenizer.json").write_text('{"model": {"type": "Surprise"}}')
  assert "tokenizer cannot be loaded" in refusal(load_tokenizer, open_checkpoint(str(folder)))


def test_nothing_of_a_checkpoint_is_executed(tiny_folder, tmp_path):
  folder = tiny_folder(auto_map={"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"})
  (folder / "evil.py").write_text(f"open({str(tmp_path / 'touched')!r}, 'w')\nclass Config: pass\nclass Model: pass\n")
  settings = json.loads((folder / "tokenizer_config.json").read_text())
  settings["auto_map"] = {"AutoTokenizer": ["evil.Config", "evil.Config"]}
  (folder / "tokenizer_config.json").write_text(json.dumps(settings))
  checkpoint = open_checkpoint(str(folder))
  load_model(checkpoint)
  load_tokenizer(checkpoint)
  assert not (tmp_path / "touched").exists()


WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None
from jaxchop.hub.load import load_model, open_checkpoint
from jaxchop.hub.tokenizer import load_tokenizer
checkpoint = open_checkpoint(sys.argv[1])
load_model(checkpoint), load_tokenizer(checkpoint)
"""


def test_loading_needs_no_torch(tiny_folder):
  subprocess.run([sys.executable, "-c", WITHOUT_TORCH, str(tiny_folder(dtype="bfloat16"))], check=True)


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
  """An empty hub cache and no network."""
  monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
  monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
  return tmp_path


COMMIT = "0123456789abcdef0123456789abcdef01234567"


def test_a_hub_model_is_opened_from_the_cache_with_its_commit(tiny_folder, hub_cache):
  entry = hub_cache / "models--org--name"
  (entry / "snapshots" / COMMIT).mkdir(parents=True)
  (entry / "blobs").mkdir()
  (entry / "refs").mkdir()
  (entry / "refs" / "main").write_text(COMMIT)
  for number, file in enumerate(tiny_folder().iterdir()):
    file.rename(entry / "blobs" / str(number))
    link = entry / "snapshots" / COMMIT / file.name
    link.symlink_to(os.path.relpath(entry / "blobs" / str(number), link.parent))
  checkpoint = open_checkpoint("org/name")
  assert (checkpoint.name, checkpoint.revision) == ("org/name", COMMIT)
  assert open_checkpoint(f"org/name@{COMMIT}").digest() == checkpoint.digest()
  load_model(checkpoint), load_tokenizer(checkpoint)


def test_a_hub_model_that_cannot_be_reached_is_one_line(hub_cache):
  assert "org/name is no folder here nor in the hub's cache" in refusal(open_checkpoint, "org/name")


def test_two_revisions_at_once_are_refused(hub_cache):
  refusal(open_checkpoint, "org/name@a", revision="b", kind=UsageError)


def test_only_data_is_fetched_from_the_hub(monkeypatch, tiny_folder):
  asked = {}
  folder = tiny_folder()

  def fetch(repo, *, revision, allow_patterns):
    asked.update(repo=repo, revision=revision, patterns=allow_patterns)
    return str(folder)

  monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
  open_checkpoint("org/name@v1.0")
  assert (asked["repo"], asked["revision"]) == ("org/name", "v1.0")
  wanted = ["config.json", "model-00001-of-00002.safetensors", "tokenizer.model", "chat_template.jinja", "LICENSE"]
  unwanted = ["pytorch_model.bin", "modeling_llama.py", "model.pth", "consolidated.00.pt", "tokenizer.pkl", "q.gguf"]
  found = huggingface_hub.utils.filter_repo_objects([*wanted, *unwanted], allow_patterns=asked["patterns"])
  assert list(found) == wanted


LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
PARITY = {
  "plain": {},
  "tied, biased, one kv head": TIED_AND_BIASED | {"num_key_value_heads": 1},
  "llama3 rope, narrow heads": {"rope_scaling": LLAMA3 | {"original_max_position_embeddings": 32}, "head_dim": 4},
  "new rope spelling": {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e4}},
}


@pytest.mark.torch
@pytest.mark.parametrize("case", PARITY)
def test_logits_are_those_of_transformers(tiny_folder, case):
  import torch
  import transformers

  folder = tiny_folder(shards=2, **PARITY[case])
  ids = np.random.default_rng(0).integers(0, 320, (2, 100))
  theirs = transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
  with torch.no_grad():
    wanted = theirs(torch.from_numpy(ids)).logits.numpy()
  ours = jax.jit(lambda model, ids: model(ids))(load_model(open_checkpoint(str(folder))), jnp.asarray(ids))
  assert np.abs(wanted).max() > 0.5
  assert np.abs(np.asarray(ours) - wanted).max() < 1e-4
