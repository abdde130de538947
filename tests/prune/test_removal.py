"""Leave-one-out, runs and greedy removal by shared prefixes, against models that are rebuilt without the layers."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxchop.config import ScoreConfig
from jaxchop.model.config import LlamaConfig
from jaxchop.model.llama import Llama
from jaxchop.prune.journal import Journal
from jaxchop.prune.score import score
from jaxchop.prune.surgery import keep_layers

CONFIG = LlamaConfig(
  vocab_size=32, width=16, mlp_width=24, heads=4, kv_heads=2, head_dim=4, norm_eps=1e-5, max_positions=64
)
IDS_NT = np.random.default_rng(0).integers(32, size=(5, 12), dtype=np.int32)
LAYERS = 5


@pytest.fixture(scope="module")
def model():
  model = Llama(CONFIG, LAYERS, rngs=nnx.Rngs(1))
  for layer in model.layers:
    layer.mlp.down.kernel[...] = layer.mlp.down.kernel[...] * 50
    layer.attention.o.kernel[...] = layer.attention.o.kernel[...] * 50
  return model


def perplexity_without(model, removed):
  kept = keep_layers(model, [layer for layer in range(LAYERS) if layer not in removed])
  logits = np.asarray(kept(jnp.asarray(IDS_NT), layout="unrolled"), np.float64)[:, :-1]
  log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  return np.exp(-np.take_along_axis(log_p, IDS_NT[:, 1:, None], -1).mean())


def test_every_run_of_layers_is_scored_as_if_the_model_were_rebuilt_without_it(model):
  found = score(model, IDS_NT, ["perplexity_run", "perplexity"], ScoreConfig(batch_size=2))
  for size in range(1, LAYERS):
    expected = [perplexity_without(model, range(start, start + size)) for start in range(LAYERS - size + 1)]
    np.testing.assert_allclose(found["perplexity_run"].runs[size - 1], expected, rtol=1e-5)
  np.testing.assert_allclose(found["perplexity"].per_layer, found["perplexity_run"].runs[0], rtol=1e-6)


def test_greedy_removal_goes_by_what_is_left(model):
  settings = ScoreConfig(batch_size=5, greedy_rounds=3, greedy_first=0, greedy_last=0)
  order, gone = score(model, IDS_NT, ["perplexity_greedy"], settings)["perplexity_greedy"].per_layer, set()
  for number in range(1, 4):
    left = [layer for layer in range(LAYERS) if layer not in gone]
    gone.add(min(left, key=lambda layer: perplexity_without(model, gone | {layer})))
    assert {layer for layer, place in enumerate(order) if place <= number} == gone
  assert sorted(order) == [1, 2, 3, 4, 4]


def test_the_first_round_of_greedy_removal_runs_nothing_that_leaving_one_out_ran(model, tmp_path):
  journal = Journal(tmp_path / "losses", "x")
  score(model, IDS_NT, ["perplexity"], ScoreConfig(greedy_rounds=1), journal=journal)
  before = (tmp_path / "losses").read_text()
  score(model, IDS_NT, ["perplexity_greedy"], ScoreConfig(greedy_rounds=1), journal=journal)
  assert (tmp_path / "losses").read_text() == before


def test_an_interrupted_sweep_goes_on_where_it_stopped(model, tmp_path):
  path, settings = tmp_path / "losses", ScoreConfig(batch_size=2)
  whole = score(model, IDS_NT, ["perplexity_run"], settings, journal=Journal(path, "x"))["perplexity_run"]
  lines = path.read_text().splitlines(keepends=True)
  # As a process leaves it that dies while it writes.
  path.write_text("".join(lines[:20]) + lines[20][:9])
  again = score(model, IDS_NT, ["perplexity_run"], settings, journal=Journal(path, "x"))["perplexity_run"]
  assert again == whole
  assert sorted(path.read_text().splitlines()) == sorted(line.rstrip() for line in lines)


def test_losses_of_something_else_are_forgotten(tmp_path):
  Journal(tmp_path / "losses", "this").put("1,2", 0, [0.5])
  assert Journal(tmp_path / "losses", "this").get("1,2", 0) == [0.5]
  assert Journal(tmp_path / "losses", "that").get("1,2", 0) is None
  assert json.loads((tmp_path / "losses").read_text()) == {"about": "that"}


def test_fewer_windows_may_serve_the_criteria_that_run_many_models(model):
  settings = ScoreConfig(batch_size=2, removal_windows=3)
  few = score(model, IDS_NT, ["perplexity"], settings)["perplexity"]
  assert few.per_layer == pytest.approx(score(model, IDS_NT[:3], ["perplexity"], settings)["perplexity"].per_layer)


def test_what_is_done_is_told_after_each_criterion(model):
  told = []
  names = ["magnitude_l1", "block_influence", "perplexity"]
  score(model, IDS_NT, names, done=lambda scores: told.append(list(scores.criteria)))
  assert told == [names[:1], names[:2], names]
