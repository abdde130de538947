"""export: a model in memory becomes the same folder that its source would, wherever its arrays lie."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

from jaxchop.errors import JaxchopError, UsageError
from jaxchop.hub import names
from jaxchop.hub.export import export_model
from jaxchop.hub.load import load_model, open_checkpoint
from jaxchop.model.tree import flatten

ABOUT = {"readme": "# Smaller\n", "provenance": {"recipe": "by hand", "reference": "runs/mine"}}
ALL = (0, 1, 2, 3)


def contents(folder: Path) -> dict[str, bytes]:
  return {path.name: path.read_bytes() for path in folder.iterdir()}


def same(a: np.ndarray, b: np.ndarray) -> bool:
  return (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_identity_through_a_float32_model_is_byte_equal(tiny_folder, tmp_path, dtype):
  source = tiny_folder(dtype=dtype)
  checkpoint = open_checkpoint(str(source))
  export_model(load_model(checkpoint), checkpoint, tmp_path / "out", keep=ALL, **ABOUT)
  before, after = (load_file(folder / "model.safetensors") for folder in (source, tmp_path / "out"))
  assert set(before) == set(after)
  assert all(same(before[name], after[name]) for name in before)


def test_every_other_file_is_carried_byte_for_byte(tiny_folder, tmp_path):
  source = tiny_folder()
  (source / "NOTICE").write_bytes(b"Built with\r\n random numbers\xff")
  (source / "README.md").write_text("the source's own card")
  (source / "optimizer.pt").write_bytes(b"not part of a model")
  checkpoint = open_checkpoint(str(source))
  written = export_model(load_model(checkpoint), checkpoint, tmp_path / "out", keep=ALL, **ABOUT)
  before, after = contents(source), contents(tmp_path / "out")
  carried = set(before) - {"config.json", "model.safetensors", "README.md", "optimizer.pt"}
  assert {"tokenizer.json", "generation_config.json", "LICENSE", "NOTICE"} <= carried
  assert all(after[name] == before[name] for name in carried)
  assert after["README.md"] == b"# Smaller\n"
  assert set(written.files) == set(after) == carried | {"config.json", "model.safetensors", "README.md", "jaxchop.json"}


def test_a_chat_template_gets_a_file_of_its_own(tiny_folder, tmp_path):
  source = tiny_folder()
  (source / "chat_template.jinja").unlink()
  checkpoint = open_checkpoint(str(source))
  export_model(load_model(checkpoint), checkpoint, tmp_path / "out", keep=ALL, **ABOUT)
  after = contents(tmp_path / "out")
  assert after["tokenizer_config.json"] == (source / "tokenizer_config.json").read_bytes()
  assert after["chat_template.jinja"].decode() == json.loads(after["tokenizer_config.json"])["chat_template"]


def test_jaxchop_json_says_what_was_done(tiny_folder, tmp_path):
  checkpoint = open_checkpoint(str(tiny_folder(dtype="bfloat16", num_hidden_layers=6)))
  keep = (0, 1, 4)
  written = export_model(load_model(checkpoint, keep=keep), checkpoint, tmp_path / "out", keep=keep, **ABOUT)
  about = json.loads((tmp_path / "out" / "jaxchop.json").read_text())
  assert about["words"] == "removes layers 2..3 and 5, keeps 0..1 and 4"
  assert (about["keep"], about["drop"], about["layers"], about["dtype"]) == ([0, 1, 4], [2, 3, 5], 3, "bfloat16")
  assert about["source"] == {
    "name": checkpoint.name,
    "revision": None,
    "digest": checkpoint.digest(),
    "layers": 6,
  }
  assert about["provenance"] == ABOUT["provenance"]
  assert {"jaxchop", "jax", "flax", "numpy"} <= set(about["versions"])
  assert set(about["tensors"]) == set(load_file(tmp_path / "out" / "model.safetensors"))
  assert written.changes["num_hidden_layers"] == (6, 3)


def test_a_tied_model_that_training_untied_gets_its_head(tiny_folder, tmp_path):
  checkpoint = open_checkpoint(str(tiny_folder(dtype="bfloat16", tie_word_embeddings=True)))
  tied = load_model(checkpoint)
  untied = load_model(open_checkpoint(str(tiny_folder(dtype="bfloat16"))))
  export_model(tied, checkpoint, tmp_path / "tied", keep=ALL, **ABOUT)
  export_model(untied, checkpoint, tmp_path / "untied", keep=ALL, **ABOUT)
  assert names.HEAD not in load_file(tmp_path / "tied" / "model.safetensors")
  assert names.HEAD in load_file(tmp_path / "untied" / "model.safetensors")
  assert open_checkpoint(str(tmp_path / "untied")).architecture.tied is False


def test_rows_that_pad_the_vocabulary_are_cut_off(tiny_folder, tmp_path):
  checkpoint = open_checkpoint(str(tiny_folder()))
  model = load_model(checkpoint)
  export_model(model, checkpoint, tmp_path / "plain", keep=ALL, **ABOUT)
  model.embedding = nnx.Param(jnp.pad(model.embedding[...], [(0, 64), (0, 0)], constant_values=jnp.nan))
  assert model.head is not None
  model.head = nnx.Param(jnp.pad(model.head[...], [(0, 0), (0, 64)], constant_values=jnp.nan))
  export_model(model, checkpoint, tmp_path / "padded", keep=ALL, **ABOUT)
  assert contents(tmp_path / "plain") == contents(tmp_path / "padded")


def test_any_other_wrong_shape_is_refused_by_name(tiny_folder, tmp_path):
  checkpoint = open_checkpoint(str(tiny_folder()))
  model = load_model(checkpoint)
  model.norm.scale = nnx.Param(jnp.ones(17))
  with pytest.raises(JaxchopError, match=r"tensor model\.norm\.weight: the model's has shape \(17,\)"):
    export_model(model, checkpoint, tmp_path / "out", keep=ALL, **ABOUT)
  assert not any(tmp_path.iterdir())


def test_parameters_that_the_config_does_not_know_are_refused_by_name(tiny_folder, tmp_path):
  checkpoint = open_checkpoint(str(tiny_folder()))
  model = load_model(open_checkpoint(str(tiny_folder(mlp_bias=True))))
  with pytest.raises(JaxchopError, match=r"tensor model\.layers\.0\.mlp\.down_proj\.bias is in only one of"):
    export_model(model, checkpoint, tmp_path / "out", keep=ALL, **ABOUT)


@pytest.mark.parametrize(
  "request_, said",
  [
    ({"keep": (0, 1)}, "has 4 layers, but its keep-list names 2"),
    ({"keep": ALL, "dtype": "int8"}, "dtype int8 cannot be written"),
    ({"keep": ALL, "max_shard_size": 0}, "max_shard_size"),
  ],
)
def test_a_request_that_cannot_be_met_is_refused(tiny_folder, tmp_path, request_, said):
  checkpoint = open_checkpoint(str(tiny_folder()))
  with pytest.raises(UsageError, match=said):
    export_model(load_model(checkpoint), checkpoint, tmp_path / "out", **request_, **ABOUT)
  assert not any(tmp_path.iterdir())


def test_a_diverged_model_is_refused_by_tensor_and_nothing_stays(tiny_folder, tmp_path):
  checkpoint = open_checkpoint(str(tiny_folder()))
  model = load_model(checkpoint)
  model.layers[2].attention.k.kernel[...] = model.layers[2].attention.k.kernel[...].at[3, 1].set(jnp.nan)
  # Row 1 of 16 columns, column 3, in the file's layout.
  with pytest.raises(JaxchopError, match=r"tensor model\.layers\.2\.self_attn\.k_proj\.weight: element 19 is nan"):
    export_model(model, checkpoint, tmp_path / "out", keep=ALL, **ABOUT)
  assert not any(tmp_path.iterdir())


def test_shards_of_a_model_on_several_devices_come_together(tiny_folder, tmp_path):
  checkpoint = open_checkpoint(str(tiny_folder(dtype="bfloat16")))
  mesh = jax.make_mesh((2, 2), ("x", "y"), axis_types=(jax.sharding.AxisType.Explicit,) * 2)

  def sharding(name, shape):
    return jax.NamedSharding(mesh, jax.P("x", "y") if len(shape) == 2 else jax.P())

  model = load_model(checkpoint, sharding=sharding)
  assert len(flatten(model)["embedding"].sharding.device_set) == 4
  export_model(model, checkpoint, tmp_path / "sharded", keep=ALL, **ABOUT)
  export_model(load_model(checkpoint), checkpoint, tmp_path / "plain", keep=ALL, **ABOUT)
  assert contents(tmp_path / "sharded") == contents(tmp_path / "plain")


# One of two processes, each with one device that holds half of every matrix: two refusals, then an export.
PROCESS = """
import sys
import jax
index, port, source, out, taken = int(sys.argv[1]), *sys.argv[2:]
jax.distributed.initialize(f"localhost:{port}", num_processes=2, process_id=index)
from jaxchop.errors import JaxchopError, UsageError
from jaxchop.hub.export import export_model
from jaxchop.hub.load import load_model, open_checkpoint
mesh = jax.make_mesh((2,), ("x",), axis_types=(jax.sharding.AxisType.Explicit,))
spec = lambda name, shape: jax.NamedSharding(mesh, jax.P("x") if len(shape) == 2 else jax.P())
checkpoint = open_checkpoint(source)
model = load_model(checkpoint, sharding=spec)
assert not model.embedding[...].is_fully_addressable
about = {"readme": "# Smaller\\n", "provenance": {"recipe": "by hand", "reference": "runs/mine"}}
def export(model, out):
  try:
    export_model(model, checkpoint, out, keep=range(checkpoint.layers), **about)
  except JaxchopError as error:
    return type(error).__name__
assert export(model, taken) == "UsageError"
diverged = jax.tree.map(lambda leaf: leaf + float("nan"), model)
assert export(diverged, out) == (None if index else "JaxchopError")
assert export(model, out) is None
"""


def test_two_processes_write_one_folder_and_never_wait_for_one_that_failed(tiny_folder, tmp_path, free_port):
  source = tiny_folder(dtype="bfloat16")
  (tmp_path / "taken").mkdir()
  (tmp_path / "taken" / "thesis.tex").write_text("years of work")
  rest = [str(free_port), str(source), str(tmp_path / "two"), str(tmp_path / "taken")]
  processes = [subprocess.Popen([sys.executable, "-c", PROCESS, str(index), *rest]) for index in range(2)]
  assert [process.wait(300) for process in processes] == [0, 0]
  checkpoint = open_checkpoint(str(source))
  export_model(load_model(checkpoint), checkpoint, tmp_path / "one", keep=ALL, **ABOUT)
  assert contents(tmp_path / "one") == contents(tmp_path / "two")


@pytest.fixture
def free_port() -> int:
  import socket

  with socket.socket() as found:
    found.bind(("localhost", 0))
    return found.getsockname()[1]


@pytest.mark.torch
@pytest.mark.parametrize(
  "settings",
  [
    {},
    {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True},
    {"rope_theta": 500000.0, "eos_token_id": [2, 3]},
    {"rope_scaling": {"type": "linear", "factor": 4.0}},
    {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}},
    {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}},
    {
      "rope_scaling": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
      }
    },
  ],
)
def test_transformers_loads_it_whole_and_computes_the_same(tiny_folder, tmp_path, settings):
  import torch
  import transformers

  checkpoint = open_checkpoint(str(tiny_folder(dtype="bfloat16", **settings)))
  keep = (0, 2, 3)
  model = load_model(checkpoint, keep=keep)
  export_model(model, checkpoint, tmp_path / "out", keep=keep, max_shard_size=20_000, **ABOUT)
  theirs, found = transformers.AutoModelForCausalLM.from_pretrained(
    tmp_path / "out", dtype=torch.float32, output_loading_info=True
  )
  assert not any(found.values())
  # 140 positions: past max_position_embeddings, and past every original length.
  ids = np.random.default_rng(0).integers(0, 320, (2, 140))
  with torch.no_grad():
    want = theirs(torch.from_numpy(ids)).logits.numpy()
  np.testing.assert_allclose(np.asarray(model(jnp.asarray(ids))), want, atol=1e-4)
  tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
  chat = [{"role": "user", "content": "The layers"}]
  assert tokenizer.apply_chat_template(chat, tokenize=False) == "<|start|>user\nThe layers<|end|>\n"
