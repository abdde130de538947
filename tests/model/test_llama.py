"""A model is a pytree whose layer stack is a list."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from tiny import tiny_llama

from jaxchop.model.llama import hidden, positions, walk
from jaxchop.model.rope import rotation

IDS_BT = np.arange(14).reshape(2, 7) % 50


def test_pruning_is_a_slice_of_the_list_and_tree_functions_just_work():
  model = tiny_llama(layers=4)
  model.layers = nnx.List([model.layers[i] for i in (0, 3)])
  assert jax.tree.map(jnp.zeros_like, model)(IDS_BT).shape == (2, 7, 50)
  assert sum(leaf.size for leaf in jax.tree.leaves(model)) == sum(leaf.size for leaf in jax.tree.leaves(tiny_llama(2)))


def test_jit_grad_and_optax_act_on_the_model_itself():
  model, optimizer = tiny_llama(), optax.sgd(1e-3)

  @jax.jit
  def loss(model):
    return jnp.mean(model(IDS_BT) ** 2)

  gradient = jax.jit(jax.grad(loss))(model)
  updates, _ = optimizer.update(gradient, optimizer.init(model), model)
  assert loss(optax.apply_updates(model, updates)) < loss(model)


def test_a_tied_head_is_one_leaf_used_twice():
  tied, untied = tiny_llama(tied=True), tiny_llama()
  assert len(jax.tree.leaves(untied)) == len(jax.tree.leaves(tied)) + 1
  np.testing.assert_array_equal(tied.head_DV(), tied.embedding[...].T)


@pytest.mark.parametrize("remat", ["none", "dots", "full", "offload"])
def test_the_walk_changes_neither_the_result_nor_its_gradient(remat):
  model = tiny_llama()

  def gradient(layout, remat):
    return jax.jit(jax.grad(lambda m: jnp.mean(hidden(m, IDS_BT, layout=layout, remat=remat) ** 2)))(model)

  expected = gradient("unrolled", "none")
  for layout in ("scan", "unrolled"):
    for found, leaf in zip(jax.tree.leaves(gradient(layout, remat)), jax.tree.leaves(expected), strict=True):
      np.testing.assert_allclose(found, leaf, rtol=0, atol=1e-5 * abs(leaf).max())


def test_what_the_backward_pass_need_not_keep_takes_no_memory():
  model, ids_BT = tiny_llama(layers=16), jnp.zeros((8, 256), jnp.int32)

  def temporary(remat):
    gradient = jax.jit(jax.grad(lambda m: jnp.mean(hidden(m, ids_BT, remat=remat) ** 2)))
    return gradient.lower(model).compile().memory_analysis().temp_size_in_bytes

  assert temporary("full") < temporary("dots") < temporary("none")


def test_a_block_whose_gate_is_shut_is_a_block_removed():
  model = tiny_llama()
  x_BTD, turn = model.embed(IDS_BT), rotation(model.config, positions(IDS_BT))
  np.testing.assert_array_equal(model.layers[0](x_BTD, turn, gate=0.0), x_BTD)


def test_walk_hands_each_layer_its_own_and_stacks_what_they_return():
  layers = [jnp.float32(2), jnp.float32(3)]

  def body(layer, carry, own):
    return carry * layer + own, carry

  for layout in ("scan", "unrolled"):
    carry, seen = walk(layers, jnp.float32(1), body, jnp.array([10.0, 20.0]), layout=layout)
    assert carry == 56 and seen.tolist() == [1, 12]
  with pytest.raises(ValueError, match="at least one layer"):
    walk([], jnp.float32(1), body)
