"""Every criterion against an independent reference over transformers' torch model: values to 1e-3, rankings equal."""

import numpy as np
import pytest

from jaxchop.config import ScoreConfig
from jaxchop.model.config import LlamaConfig
from jaxchop.prune.criteria import DEFINITIONS
from jaxchop.prune.score import score

torch_criteria = pytest.importorskip("torch_criteria")
torch_llama = pytest.importorskip("torch_llama")
pytestmark = pytest.mark.torch

SHAPES = {
  "grouped queries, tied": {"heads": 4, "kv_heads": 2, "tied": True},
  "biases, untied": {"heads": 2, "kv_heads": 2, "attention_bias": True, "mlp_bias": True},
}
RTOL = 1e-3


def drawn(**shape):
  config = LlamaConfig(vocab_size=64, width=24, mlp_width=40, head_dim=8, norm_eps=1e-5, max_positions=64, **shape)
  return torch_llama.Drawn(config, layers=5, seed=3)


def compare(theirs, ours, ids_NT, real_NT, *, skip, longest, rounds, criteria=None):
  """Computes everything on both sides once and compares each criterion."""
  settings = ScoreConfig(batch_size=2, skip_first=bool(skip), longest_run=longest, greedy_rounds=rounds)
  found = score(ours, ids_NT, criteria or tuple(DEFINITIONS), settings, real_NT=real_NT)
  per_layer, tables, pairs = torch_criteria.activation_scores(theirs, ids_NT, real_NT, skip)
  per_layer |= torch_criteria.taylor(theirs, ids_NT, real_NT)
  for power in (1, 2):
    per_layer[f"magnitude_l{power}"] = torch_criteria.magnitude(theirs, power, mean=False)
    per_layer[f"magnitude_l{power}_mean"] = torch_criteria.magnitude(theirs, power, mean=True)
  count = len(per_layer["cka"])

  def without(removed):
    return torch_criteria.perplexity_without(theirs, ids_NT, real_NT, removed)

  tables["perplexity_run"] = [
    [without(set(range(start, start + size))) for start in range(count - size + 1)] for size in range(1, longest + 1)
  ]
  per_layer["perplexity"] = per_layer["perplexity_run"] = tables["perplexity_run"][0]
  order = torch_criteria.greedy_order(theirs, ids_NT, real_NT, range(1, count - 1), rounds)
  per_layer["perplexity_greedy"] = [order.index(n) + 1 if n in order else rounds + 1 for n in range(count)]
  assert set(per_layer) == set(found.criteria)
  for name, expected in per_layer.items():
    scale = RTOL * np.abs(expected).max() if name == "taylor_signed" else 1e-9
    np.testing.assert_allclose(found[name].per_layer, expected, rtol=RTOL, atol=scale, err_msg=name)
    assert np.argsort(found[name].per_layer, kind="stable").tolist() == np.argsort(expected, kind="stable").tolist(), (
      name
    )
  for name, table in tables.items():
    for ours_row, their_row in zip(found[name].runs, table, strict=False):
      np.testing.assert_allclose(ours_row, their_row, rtol=RTOL, err_msg=name)
    assert len(found[name].runs) >= longest
  np.testing.assert_allclose(found["cka"].pairs, pairs["cka"], rtol=RTOL, atol=RTOL)
  assert np.exp(found.baseline[0]) == pytest.approx(without(set()), rel=RTOL)


@pytest.mark.parametrize("skip", [0, 1])
@pytest.mark.parametrize(
  "name", ["grouped queries, tied", pytest.param("biases, untied", marks=pytest.mark.slow)], ids=str
)
def test_on_small_random_models_with_padding(name, skip):
  theirs, ours = torch_llama.pair(drawn(**SHAPES[name]))
  ids_NT = np.random.default_rng(1).integers(64, size=(5, 12), dtype=np.int32)
  real_NT = np.arange(12) < np.array([12, 9, 12, 7, 11])[:, None]
  compare(theirs, ours, ids_NT, real_NT, skip=skip, longest=4, rounds=3)
