"""Shapes of models without their weights."""

import jax
import pytest

from jaxchop.hub import architectures, download
from jaxchop.hub.architectures import shape_of
from jaxchop.model.tree import abstract


# As their model cards and papers say.
@pytest.mark.parametrize(
  ("name", "parameters"),
  [
    ("huggyllama/llama-7b", 6_738_415_616),
    ("meta-llama/Llama-2-7b-hf", 6_738_415_616),
    ("meta-llama/Llama-2-7b-chat-hf", 6_738_415_616),
    ("meta-llama/Llama-2-13b-hf", 13_015_864_320),
    ("meta-llama/Llama-2-70b-hf", 68_976_648_192),
    ("meta-llama/Meta-Llama-3-8B", 8_030_261_248),
    ("meta-llama/Llama-3.1-8B-Instruct", 8_030_261_248),
    ("meta-llama/Llama-3.1-70B", 70_553_706_496),
    ("meta-llama/Llama-3.2-1B", 1_235_814_400),
    ("meta-llama/Llama-3.2-3B", 3_212_749_824),
  ],
)
def test_known_models_have_as_many_parameters_as_their_makers_say(name, parameters):
  assert sum(leaf.size for leaf in jax.tree.leaves(abstract(*shape_of(name)))) == parameters


def test_a_folder_needs_no_weights_and_one_with_weights_says_the_same(tiny_folder):
  folder = tiny_folder()
  whole = shape_of(str(folder))
  for weights in folder.glob("*.safetensors*"):
    weights.unlink()
  assert shape_of(str(folder)) == whole
  assert whole.layers == 4


def test_of_another_hub_model_its_config_alone_is_fetched(tiny_folder, monkeypatch):
  asked = []

  def fetched(repo, file, revision):
    asked.append((repo, file, revision))
    return str(tiny_folder(num_hidden_layers=3) / file)

  monkeypatch.setattr(download.huggingface_hub, "hf_hub_download", fetched)
  assert architectures.shape_of("someone/llama@v2").layers == 3
  assert asked == [("someone/llama", "config.json", "v2")]
