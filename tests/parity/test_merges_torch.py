"""Merged and mapped models beside transformers' torch Llama, whose state dict is cut and mixed by hand here."""

import dataclasses

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
from torch_llama import Drawn, pair, tokens  # noqa: E402

from jaxchop.model.config import LlamaConfig  # noqa: E402
from jaxchop.prune.laco import LacoConfig, laco  # noqa: E402
from jaxchop.prune.linear_map import linear_map  # noqa: E402
from jaxchop.prune.merge import Merge, apply_merges  # noqa: E402
from jaxchop.prune.mka import mka  # noqa: E402

pytestmark = pytest.mark.torch
LAYERS = 6
DRAWN = Drawn(
  LlamaConfig(
    vocab_size=64,
    width=24,
    mlp_width=40,
    heads=6,
    kv_heads=2,
    head_dim=4,
    norm_eps=1e-5,
    max_positions=64,
    attention_bias=True,
    mlp_bias=True,
  ),
  layers=LAYERS,
  seed=5,
)
LENGTHS = (9, 4, 7)
IDS_NT = tokens(DRAWN, 3, 9).astype(np.int32)
MASK_NT = np.arange(9) < np.array(LENGTHS)[:, None]


@pytest.fixture(scope="module")
def models():
  return pair(DRAWN)


def layer_of(state, layer):
  """Returns {name within the layer: tensor}."""
  prefix = f"model.layers.{layer}."
  return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def built(theirs, layers):
  """Returns a fresh transformers model with these layers, each {name within the layer: tensor}."""
  drawn = dataclasses.replace(DRAWN, layers=len(layers))
  model = transformers.LlamaForCausalLM(drawn.theirs()).eval()
  state = {name: tensor for name, tensor in theirs.state_dict().items() if not name.startswith("model.layers.")}
  for index, layer in enumerate(layers):
    state |= {f"model.layers.{index}.{name}": tensor for name, tensor in layer.items()}
  model.load_state_dict(state)
  return model


def collapsed(layers, at, size, mode):
  """LaCo on a list of layers: the notebooks' in-place sum, or the paper's over untouched weights."""
  new = {name: tensor.clone() for name, tensor in layers[at].items()}
  for other in layers[at + 1 : at + 1 + size]:
    for name in new:
      if "_proj" in name:
        new[name] += other[name] - (new if mode == "telescope" else layers[at])[name]
  return [*layers[:at], new, *layers[at + 1 + size :]]


def logits(theirs, ids_NT):
  with torch.no_grad():
    return theirs(torch.tensor(ids_NT, dtype=torch.long)).logits.numpy()


def last_states(theirs):
  """Returns transformers' last hidden states of each sentence without its padding, as one vector."""
  found = []
  for ids_T, length in zip(IDS_NT, LENGTHS, strict=True):
    with torch.no_grad():
      out = theirs(torch.tensor(ids_T[None, :length], dtype=torch.long), output_hidden_states=True)
    found.append(out.hidden_states[-1].flatten())
  return found


def assert_same_logits(model, theirs):
  expected = logits(theirs, IDS_NT)
  np.testing.assert_allclose(model(IDS_NT), expected, rtol=0, atol=1e-3 * abs(expected).max())


@pytest.mark.parametrize("mode", ["telescope", "rdsc"])
def test_laco_has_the_similarities_and_logits_of_merges_by_hand(models, mode):
  theirs, model = models
  layers = [layer_of(theirs.state_dict(), layer) for layer in range(LAYERS)]
  wanted, names, at, tries = last_states(theirs), list(range(LAYERS)), LAYERS - 3, []
  config = LacoConfig(layers_per_merge=3, interval=1, highest=LAYERS, threshold=0.3, mode=mode)
  while at >= 0:
    size = min(2, len(layers) - at - 1)
    candidate = collapsed(layers, at, size, mode)
    found = last_states(built(theirs, candidate))
    cosines = [torch.cosine_similarity(a, b, dim=0).item() for a, b in zip(wanted, found, strict=True)]
    tries.append((names[at], np.mean(cosines), np.mean(cosines) > config.threshold))
    if tries[-1][2]:
      layers = candidate
      del names[at + 1 : at + 1 + size]
    at -= 1
  merged = laco(model, IDS_NT, MASK_NT, config, batch_size=2)
  assert {kept for *_, kept in tries} == {True, False}
  assert merged.keep == tuple(names)
  assert [(trial.layer, trial.committed) for trial in merged.trials] == [(base, kept) for base, _, kept in tries]
  np.testing.assert_allclose([trial.similarity for trial in merged.trials], [value for _, value, _ in tries], atol=1e-3)
  assert_same_logits(merged.model, built(theirs, layers))


@pytest.mark.parametrize("mode", ["telescope", "rdsc"])
def test_one_merge_has_the_logits_of_a_merge_by_hand(models, mode):
  theirs, model = models
  layers = [layer_of(theirs.state_dict(), layer) for layer in range(LAYERS)]
  merged = apply_merges(model, [Merge(into=1, layers=(2, 3, 4), mode=mode)])
  assert_same_logits(merged, built(theirs, collapsed(layers, 1, 3, mode)))


def test_mka_has_the_logits_of_a_weighted_mean_by_hand(models):
  theirs, model = models
  ids_NT = tokens(DRAWN, 9, 5).astype(np.int32)
  found = mka(model, ids_NT, np.ones((9, 5), bool), 2, order="last")
  layers = [layer_of(theirs.state_dict(), layer) for layer in range(LAYERS)]
  for merge in found.merges:
    low, high = layers[-2:]
    assert 0.5 < merge.weight < 0.732
    mixed = {
      name: merge.weight * tensor + (1 - merge.weight) * high[name] if "_proj" in name else tensor
      for name, tensor in low.items()
    }
    layers = [*layers[:-2], mixed]
  assert len(found.model.layers) == LAYERS - 2
  assert_same_logits(found.model, built(theirs, layers))


def test_a_linear_map_has_the_logits_of_least_squares_by_hand(models):
  theirs, model = models
  start, end = 2, 4
  ids_NT = tokens(DRAWN, 20, 9).astype(np.int32)
  seen = {}
  handle = theirs.model.layers[start - 1].mlp.register_forward_hook(lambda *hook: seen.update(mlp=hook[-1]))
  with torch.no_grad():
    states = theirs(torch.tensor(ids_NT, dtype=torch.long), output_hidden_states=True).hidden_states
  handle.remove()
  mlp, before, after = (a.flatten(0, 1).double() for a in (seen["mlp"], states[start], states[end]))
  map_DE = torch.linalg.lstsq(mlp, after - (before - mlp)).solution.float()
  layers = [layer_of(theirs.state_dict(), layer) for layer in range(LAYERS) if not start <= layer < end]
  down = dict(layers[start - 1])
  down["mlp.down_proj.weight"] = map_DE.T @ down["mlp.down_proj.weight"]
  down["mlp.down_proj.bias"] = down["mlp.down_proj.bias"] @ map_DE
  layers[start - 1] = down
  found = linear_map(model, ids_NT, np.ones(ids_NT.shape, bool), start, end)
  assert_same_logits(found.model, built(theirs, layers))
  assert found.missed < 0.9
