"""A model and its flat dict are the same thing."""

import jax
import numpy as np
import pytest
from tiny import tiny_llama

from jaxchop.model.tree import abstract, flatten, unflatten


def test_a_flat_dict_goes_back_into_the_model_it_came_from():
  model = tiny_llama()
  back = unflatten(abstract(model.config, 2), flatten(model))
  assert jax.tree.structure(back) == jax.tree.structure(model)
  jax.tree.map(np.testing.assert_array_equal, back, model)


def test_names_are_the_modules_paths_and_a_tied_head_has_none():
  assert flatten(tiny_llama(1)).keys() - flatten(tiny_llama(1, tied=True)).keys() == {"head"}
  biased = flatten(tiny_llama(1, attention_bias=True)).keys() - flatten(tiny_llama(1)).keys()
  assert biased == {f"layers.0.attention.{part}.bias" for part in "qkvo"}
  assert "layers.1.mlp.down.kernel" in flatten(tiny_llama(2))


def test_an_abstract_model_takes_no_memory():
  leaves = jax.tree.leaves(abstract(tiny_llama().config, 2))
  assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves)


def test_missing_and_unknown_names_are_told():
  flat = flatten(tiny_llama())
  flat["stray"] = flat.pop("norm.scale")
  with pytest.raises(ValueError, match=r"missing \['norm.scale'\], unknown \['stray'\]"):
    unflatten(tiny_llama(), flat)


def test_no_layer_of_an_abstract_model_is_another_one_again():
  config = tiny_llama().config
  kernels = [layer.mlp.up.kernel for _ in range(2) for layer in abstract(config, 2).layers]
  assert len({id(kernel) for kernel in kernels}) == 4
