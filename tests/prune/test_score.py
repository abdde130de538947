"""Scores against plain references: one model, one candidate, one window at a time."""

import itertools
import json

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxchop.config import ScoreConfig
from jaxchop.errors import JaxchopError
from jaxchop.model.config import LlamaConfig
from jaxchop.model.llama import Llama, hidden
from jaxchop.prune.score import score
from jaxchop.prune.scores_file import from_json, read_scores, to_json
from jaxchop.prune.surgery import keep_layers

CONFIG = LlamaConfig(
  vocab_size=32, width=16, mlp_width=24, heads=4, kv_heads=2, head_dim=4, norm_eps=1e-5, max_positions=64
)
IDS_NT = np.random.default_rng(0).integers(32, size=(5, 12), dtype=np.int32)


@pytest.fixture(scope="module")
def model():
  """Weights large enough that every block changes its input visibly."""
  model = Llama(CONFIG, 4, rngs=nnx.Rngs(0))
  for layer in model.layers:
    layer.mlp.down.kernel[...] = layer.mlp.down.kernel[...] * 50
    layer.attention.o.kernel[...] = layer.attention.o.kernel[...] * 50
  return model


def states(model, ids_NT):
  """The raw residual stream before the stack and after each block, by cutting the model after it."""
  return [np.asarray(model.embed(ids_NT))] + [
    np.asarray(hidden(keep_layers(model, range(end)), jnp.asarray(ids_NT), layout="unrolled"))
    for end in range(1, len(model.layers) + 1)
  ]


def mean_nll(model, ids_NT):
  logits = np.asarray(model(jnp.asarray(ids_NT), layout="unrolled"), np.float64)[:, :-1]
  log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  return -np.take_along_axis(log_p, ids_NT[:, 1:, None], -1).mean()


def test_block_influence_is_the_mean_cosine_distance_of_each_token(model):
  expected = []
  stream = states(model, IDS_NT)
  for x, y in itertools.pairwise(stream):
    cosine = (x * y).sum(-1) / np.linalg.norm(x, axis=-1) / np.linalg.norm(y, axis=-1)
    expected.append((1 - cosine).mean())
  found = score(model, IDS_NT, ["block_influence"], ScoreConfig(batch_size=2))["block_influence"]
  np.testing.assert_allclose(found.per_layer, expected, rtol=1e-4)


def test_block_influence_of_a_block_that_adds_nothing_is_zero(model):
  still = keep_layers(model, range(4))
  for part in (still.layers[2].attention.o, still.layers[2].mlp.down):
    part.kernel[...] = jnp.zeros_like(part.kernel[...])
  influence = score(still, IDS_NT, ["block_influence"])["block_influence"].per_layer
  assert influence[2] == pytest.approx(0, abs=1e-6)
  assert min(influence[0], influence[1], influence[3]) > 1e-2


def test_perplexity_without_each_layer_equals_rebuilding_the_model_without_it(model):
  expected = [np.exp(mean_nll(keep_layers(model, [i for i in range(4) if i != out]), IDS_NT)) for out in range(4)]
  found = score(model, IDS_NT, ["perplexity"], ScoreConfig(batch_size=2))["perplexity"]
  np.testing.assert_allclose(found.per_layer, expected, rtol=1e-5)


def test_batch_size_changes_no_score(model):
  one, all_at_once = (
    score(model, IDS_NT, ["block_influence"], ScoreConfig(batch_size=b))["block_influence"] for b in (1, 5)
  )
  np.testing.assert_allclose(one.per_layer, all_at_once.per_layer, rtol=1e-5)


def test_intervals_enclose_the_score_and_shrink_to_it_when_windows_agree(model):
  several = score(model, IDS_NT, ["perplexity"])["perplexity"]
  assert all(low < value < high for value, (low, high) in zip(several.per_layer, several.interval, strict=True))
  same = score(model, np.repeat(IDS_NT[:1], 4, axis=0), ["perplexity"])["perplexity"]
  np.testing.assert_allclose([low for low, _ in same.interval], same.per_layer, rtol=1e-6)


@pytest.mark.parametrize("name", ["taylor", "taylor_batch", "block_influence_pooled", "cka", "euclidean"])
def test_an_interval_stands_around_its_score_whatever_the_criterion_does_to_the_windows(model, name):
  found = score(model, IDS_NT, [name])[name]
  assert all(low <= value <= high for value, (low, high) in zip(found.per_layer, found.interval, strict=True))


def test_scores_survive_their_file(model):
  scores = score(model, IDS_NT, ["block_influence", "perplexity"])
  about = {"digest": "x"}
  content = json.loads(json.dumps(to_json(scores, settings=ScoreConfig(), model=about, data=about)))
  again = from_json(content)
  for name, score_of in scores.criteria.items():
    assert again[name].per_layer == score_of.per_layer
    assert again[name].interval == score_of.interval
    np.testing.assert_allclose(again[name].bootstrap, score_of.bootstrap, rtol=1e-5)


@pytest.mark.parametrize("content", ["{}", "[]", '{"criteria": {"perplexity": {}}}', "{"])
def test_a_broken_file_is_refused_with_its_name(tmp_path, content):
  (tmp_path / "scores.json").write_text(content)
  with pytest.raises(JaxchopError, match=r"scores\.json"):
    read_scores(tmp_path / "scores.json")


def test_a_broken_weight_is_refused_with_its_layer(model):
  broken = Llama(CONFIG, 3, rngs=nnx.Rngs(0))
  broken.layers[1].mlp.up.kernel[...] = jnp.full_like(broken.layers[1].mlp.up.kernel[...], jnp.nan)
  with pytest.raises(JaxchopError, match="layer 1"):
    score(broken, IDS_NT, ["block_influence"])
