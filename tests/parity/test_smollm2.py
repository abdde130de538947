"""The real SmolLM2 in both libraries: transformers reads the GGUF with its own code, not with ours.

All in one file, because reading the model twice over takes longer than any test.
"""

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
import torch_llama  # noqa: E402
from test_criteria_torch import compare  # noqa: E402
from test_export_torch import both  # noqa: E402
from test_generation import torch_greedy  # noqa: E402
from test_gradients import assert_equal_gradients  # noqa: E402
from test_logits import summed_loss  # noqa: E402
from test_perplexity_torch import gptq, join, strided  # noqa: E402

from jaxchop.cli import main  # noqa: E402
from jaxchop.compiler import Program  # noqa: E402
from jaxchop.data.batch import batch_of  # noqa: E402
from jaxchop.data.sources import documents  # noqa: E402
from jaxchop.evaluate.perplexity import Protocol, perplexity  # noqa: E402
from jaxchop.hub.load import load_model, open_checkpoint  # noqa: E402
from jaxchop.hub.tokenizer import load_tokenizer  # noqa: E402
from jaxchop.model.generate import generate  # noqa: E402
from jaxchop.parallel.mesh import make_mesh  # noqa: E402
from jaxchop.parallel.sharding import own_rows, spread, spread_rows  # noqa: E402
from jaxchop.recover.objective import summed_loss as summed_window_loss  # noqa: E402
from jaxchop.training import MeshConfig  # noqa: E402

pytestmark = [pytest.mark.torch, pytest.mark.real]
PROMPTS = (
  "The history of the lighthouse on the northern cape begins with a storm.",
  "def fibonacci(n):\n  if n < 2:\n    return n\n",
  "Water boils at a lower temperature on a mountain because",
)
# One length, one compilation; what is padded behind a text does not change what comes before.
PADDED = 32


@pytest.fixture(scope="module")
def tokenizer(smollm2):
  return load_tokenizer(open_checkpoint(str(smollm2)))


@pytest.fixture(scope="module")
def real(smollm2, tokenizer):
  """Returns transformers' model, ours, and the prompts' ids."""
  prompts = [tokenizer.encode(prompt) for prompt in PROMPTS]
  return torch_llama.from_gguf(smollm2), load_model(open_checkpoint(str(smollm2))), prompts


@Program
def logits(model, ids_BT):
  return model(ids_BT)


@jax.jit
def loss(model, ids_BT, weight_BT):
  return summed_loss(model, ids_BT, weight_BT) / weight_BT.sum()


@Program
def window_loss(model, batch):
  return summed_window_loss(model, batch)


@pytest.mark.parametrize("prompt", range(3))
def test_it_has_the_logits_and_loss_of_transformers(real, prompt):
  theirs, model, prompts = real
  length = len(prompts[prompt])
  with torch.no_grad():
    ids_BT = torch.tensor([prompts[prompt]])
    found = theirs(ids_BT, labels=ids_BT)
  ids_BT = np.array([prompts[prompt] + [0] * (PADDED - length)])
  np.testing.assert_allclose(logits(model, ids_BT)[:, :length], found.logits.numpy(), rtol=0, atol=1e-4)
  weight_BT = (np.arange(1, PADDED)[None] < length).astype(np.float32)
  # XLA's rounding depends on the processor: one has ours 5.6 millionths above torch's, which equals its own float64.
  assert float(loss(model, ids_BT, weight_BT)) == pytest.approx(float(found.loss), rel=1e-5)


def test_its_loss_spread_over_four_devices_is_that_of_one(real):
  """At 30 layers and 512 tokens XLA has compiled wrong numbers, with options that were right for 16 layers."""
  _, model, _ = real
  ids_BS = np.random.default_rng(0).integers(0, model.config.vocab_size, (4, 513)).astype(np.int32)
  alone = float(window_loss(model, batch_of(ids_BS)))
  mesh = make_mesh(MeshConfig(), model.config, 4, 512)
  with jax.set_mesh(mesh):
    rows = spread_rows(batch_of(ids_BS), mesh, own_rows(mesh, 4), 4)
    assert float(window_loss(spread(model, mesh), rows)) == pytest.approx(alone, rel=1e-5)


@pytest.mark.slow
def test_every_gradient_is_that_of_transformers(real):
  theirs, model, prompts = real
  drawn = torch_llama.Drawn(model.config, len(model.layers), 0)
  # Sums in another order, thirty layers deep: the worst of a million elements is off by 1.3e-3 of its largest.
  assert_equal_gradients(model, theirs, drawn, np.array([prompts[0]]), {"layout": "scan"}, 2e-3)


# Two minutes and ten gigabytes; on small random models every criterion is compared at each push.
@pytest.mark.slow
def test_every_criterion_is_that_of_the_reference_over_torch(real):
  theirs, ours, prompts = real
  # Two windows and single layers: every candidate is a pass over all weights; test_criteria_torch.py proves the rest.
  length = min(map(len, prompts[:2]))
  ids_NT = np.array([ids[:length] for ids in prompts[:2]], np.int32)
  compare(theirs, ours, ids_NT, np.ones(ids_NT.shape, bool), skip=0, longest=1, rounds=1)


@pytest.mark.slow
def test_it_continues_as_in_transformers(real):
  theirs, model, prompts = real
  expected = torch_greedy(theirs, prompts, 40, [2, 0])
  assert generate(model, prompts, max_new_tokens=40, eos=[2, 0]) == expected
  assert all(len(set(row)) > 5 for row in expected)


@pytest.mark.slow
def test_perplexities_are_those_of_torch(real, tokenizer):
  theirs, ours, _ = real
  topic = [document for document in documents("builtin") if document.name == "builtin:import"]
  ids = join(tokenizer, topic)
  assert len(ids) > 1_500
  wanted = {
    Protocol(window=256, stride=256): gptq(theirs, ids, 256),
    Protocol(window=256, stride=128, max_windows=3): strided(theirs, ids[:512], 256, 128),
  }
  for protocol, value in wanted.items():
    found = perplexity(ours, tokenizer, topic, protocol, batch_size=2)
    assert found.perplexity == pytest.approx(value, rel=1e-4), str(protocol)


@pytest.mark.slow
def test_the_pruned_model_continues_alike(tmp_path):
  assert main(["prune", "builtin", "--drop", "20:24", "-o", str(tmp_path / "out"), "--quiet"]) == 0
  expected, found = both(tmp_path / "out", 24)
  assert found == expected
  assert all(len(set(row)) > 5 for row in found)
