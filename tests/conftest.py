"""What every room's tests share: four CPU devices, small Hugging Face folders made on the spot, the real weights."""

import importlib.util
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import jax
import pytest
import tiny_models
from quick_compile import compile_quickly
from tokenizers import Tokenizer

from jaxchop.hub.builtin import builtin_model

_TORCH = importlib.util.find_spec("torch") is not None
if sys.version_info < (3, 12) and not _TORCH:
  raise pytest.UsageError("torch is missing: the parity tests would not run; pip install -e '.[test]'")
jax.config.update("jax_num_cpu_devices", 4)
# The first example pays for compiling and importing; a deadline would only say how busy the machine is.
hypothesis.settings.register_profile("jaxchop", deadline=None)
hypothesis.settings.load_profile("jaxchop")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
  """Says of each test that needs torch that it was not run, where the test extra leaves torch out."""
  for item in items:
    if "torch" in item.keywords and not _TORCH:
      item.add_marker(pytest.mark.skip(reason="needs torch: pip install torch"))


def pytest_runtest_setup(item: pytest.Item) -> None:
  """Fixtures, too, are compiled as the test that first asks for them is marked."""
  compile_quickly(not {"optimised", "real"} & item.keywords.keys())


@pytest.fixture(autouse=True, scope="session")
def compiled_once(tmp_path_factory: pytest.TempPathFactory) -> None:
  """Shares compiled programs among the files and the processes that tests start."""
  folder = str(tmp_path_factory.mktemp("compiled"))
  jax.config.update("jax_compilation_cache_dir", folder)
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
  os.environ |= {"JAX_COMPILATION_CACHE_DIR": folder, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}


@pytest.fixture(autouse=True, scope="module")
def forgotten_programs() -> Iterator[None]:
  """Compiled programs of one file serve no other: kept, those of the whole suite would take many gigabytes."""
  yield
  jax.clear_caches()


@pytest.fixture(scope="session")
def smollm2() -> Path:
  """The real SmolLM2-135M as GGUF, fetched once into the cache."""
  return builtin_model()


@pytest.fixture(scope="session")
def tiny_tokenizer() -> Tokenizer:
  """A byte-level BPE of 320 tokens, three of them special."""
  return tiny_models.tokenizer()


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Tokenizer) -> Callable[..., Path]:
  """Makes a folder with a random 4-layer Llama: `tiny_folder(dtype="bfloat16", shards=3, num_hidden_layers=6, ...)`.

  Any other keyword is a setting of config.json; None takes the setting out.
  """

  def make(*, dtype: str = "float32", shards: int = 1, seed: int = 0, **settings: Any) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    config = {**tiny_models.CONFIG, "torch_dtype": dtype, **settings}
    config = {key: value for key, value in config.items() if value is not None or key == "rope_scaling"}
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    tiny_models.write_weights(folder, tiny_models.random_weights(config, dtype, seed), shards)
    tiny_models.write_tokenizer(folder, tiny_tokenizer, config)
    (folder / "LICENSE").write_text("Do what you like with these random numbers.\n")
    return folder

  return make


@pytest.fixture(scope="session")
def local_tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
  """A folder with the tasks of tests/evaluate/tasks for lm-evaluation-harness, which finds their items there."""
  source, folder = Path(__file__).parent / "evaluate" / "tasks", tmp_path_factory.mktemp("tasks")
  for file in source.iterdir():
    (folder / file.name).write_text(file.read_text().replace("ITEMS", str(folder)))
  return folder
