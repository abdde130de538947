"""SLM's windows against the released loop, written out with a model rebuilt for every try."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxchop.errors import UsageError
from jaxchop.model.config import LlamaConfig
from jaxchop.model.llama import positions
from jaxchop.model.rope import rotation
from jaxchop.model.tree import abstract, flatten, unflatten
from jaxchop.prune.slm import SlmConfig, slm
from jaxchop.prune.surgery import keep_layers

CONFIG = LlamaConfig(
  vocab_size=32, width=16, mlp_width=24, heads=4, kv_heads=2, head_dim=4, norm_eps=1e-5, max_positions=64
)
LAYERS = 8
IDS_NT = np.random.default_rng(0).integers(32, size=(2, 7), dtype=np.int32)
MASK_NT = np.ones((2, 7), bool)
run = jax.jit(lambda block, x_BTD, turn: block(x_BTD, turn))


@pytest.fixture(scope="module")
def model():
  """Weights large enough that a merge is felt, norms that differ from layer to layer."""
  rng = np.random.default_rng(1)
  like = abstract(CONFIG, LAYERS)
  return jax.tree.map(
    lambda leaf: jnp.asarray(rng.normal(*((1.0, 0.1) if leaf.ndim == 1 else (0.0, 0.15)), leaf.shape), jnp.float32),
    like,
  )


def states(model, layers):
  ids_BT = jnp.asarray(IDS_NT)
  x_BTD, turn = model.embed(ids_BT), rotation(CONFIG, positions(ids_BT))
  for weights in layers:
    x_BTD = run(unflatten(model.layers[0], weights), x_BTD, turn)
  return np.asarray(model.norm(x_BTD), np.float64).reshape(len(IDS_NT), -1)


def merged(layers, low, high, mode):
  base, group = layers[low], layers[low + 1 : high + 1]
  new = dict(base)
  for name in base:
    if "norm" not in name and group:
      new[name] = group[-1][name] if mode == "telescope" else base[name] + sum(g[name] - base[name] for g in group)
  return [*layers[:low], new, *layers[high + 1 :]]


def released(model, threshold, mode):
  """Returns the windows, the pairs tried with their similarity, and the layers, by the steps of SLM.py.

  Its try of a window of one layer, which changes nothing, is left out of the pairs.
  """
  layers = [{name: np.asarray(leaf) for name, leaf in flatten(layer).items()} for layer in model.layers]
  wanted, windows, tries = states(model, layers), [], []
  high, low = LAYERS - 2, LAYERS - 3
  while low >= 0:
    found = states(model, merged(layers, low, high, mode))
    norms = np.linalg.norm(wanted, axis=1) * np.linalg.norm(found, axis=1)
    value = ((wanted * found).sum(axis=1) / norms).mean()
    if low < high:
      tries.append((low, high, value))
    if value > threshold:
      low -= 1
    elif low + 1 != high:
      layers = merged(layers, low + 1, high, mode)
      windows.append((low + 1, high))
      high = low
    else:
      high, low = high - 1, low - 1
  return windows, tries, layers, high


def windows_of(merges):
  for merge in merges:
    assert merge.layers == tuple(range(merge.into + 1, merge.layers[-1] + 1))
  return [(merge.into, merge.layers[-1]) for merge in merges]


@pytest.mark.parametrize(("mode", "threshold"), [("telescope", 0.5), ("telescope", 0.8), ("rdsc", 0.6)])
def test_windows_tries_and_weights_are_those_of_the_released_loop(model, mode, threshold):
  windows, tries, layers, high = released(model, threshold, mode)
  if high > 0:
    # The window that is open at layer 0 has passed, and is merged here.
    windows, layers = [*windows, (0, high)], merged(layers, 0, high, mode)
  found = slm(model, IDS_NT, MASK_NT, SlmConfig(threshold=threshold, mode=mode))
  assert windows_of(found.merges) == windows and windows
  assert [trial.layer for trial in found.trials] == [low for low, *_ in tries]
  np.testing.assert_allclose([trial.similarity for trial in found.trials], [value for *_, value in tries], atol=1e-5)
  assert [trial.committed for trial in found.trials] == [(low, high) in windows for low, high, _ in tries]
  assert len(found.model.layers) == len(found.keep) == len(layers)
  for block, weights in zip(found.model.layers, layers, strict=True):
    for name, leaf in flatten(block).items():
      np.testing.assert_allclose(leaf, weights[name], atol=1e-5, err_msg=name)


def test_the_last_layer_is_never_merged_and_a_threshold_that_all_pass_merges_the_rest(model):
  found = slm(model, IDS_NT, MASK_NT, SlmConfig(threshold=-1.0))
  assert windows_of(found.merges) == [(0, LAYERS - 2)]
  assert found.keep == (0, LAYERS - 1)
  last = flatten(found.model.layers[1])
  assert all(leaf is last[name] for name, leaf in flatten(model.layers[-1]).items())


def test_a_threshold_that_none_pass_leaves_the_model_as_it_is(model):
  found = slm(model, IDS_NT, MASK_NT, SlmConfig(threshold=1.0))
  assert (found.keep, found.merges) == (tuple(range(LAYERS)), ())
  assert [trial.layer for trial in found.trials] == [5, 4, 3, 2, 1, 0]


def test_settings_and_models_that_do_not_fit_are_refused(model):
  with pytest.raises(UsageError, match=r"merging.threshold is -1.1"):
    slm(model, IDS_NT, MASK_NT, SlmConfig(threshold=-1.1))
  with pytest.raises(UsageError, match="2 layers"):
    slm(keep_layers(model, (0, 1)), IDS_NT, MASK_NT, SlmConfig())
