"""Logits and losses are those of transformers' torch model, whatever the configuration."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
from torch_llama import KINDS, TRAINED, architectures, pair, tokens  # noqa: E402

from jaxchop.model.llama import hidden  # noqa: E402
from jaxchop.model.loss import next_token_loss  # noqa: E402

pytestmark = pytest.mark.torch
few = settings(max_examples=3, derandomize=True)


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
@few
def test_logits_are_those_of_transformers_past_the_trained_length(kind, data):
  drawn = data.draw(architectures(kind))
  theirs, model = pair(drawn)
  ids_BT = tokens(drawn, 2, 2 * TRAINED + 3)
  with torch.no_grad():
    expected_BTV = theirs(torch.tensor(ids_BT)).logits.numpy()
  layout = data.draw(st.sampled_from(["scan", "unrolled"]))
  np.testing.assert_allclose(jax.jit(lambda m: m(ids_BT, layout=layout))(model), expected_BTV, rtol=0, atol=1e-4)


@given(data=st.data())
@few
def test_documents_kept_apart_are_those_of_transformers_behind_a_block_diagonal_mask(data):
  drawn = data.draw(architectures("default"))
  theirs, model = pair(drawn)
  theirs.set_attn_implementation("eager")
  ids_BT = tokens(drawn, 2, 9)
  segments_BT = np.array([[1, 1, 1, 1, 2, 2, 3, 3, 3], [1, 2, 2, 2, 2, 2, 2, 2, 3]])
  place_BT = np.array([[0, 1, 2, 3, 0, 1, 0, 1, 2], [0, 0, 1, 2, 3, 4, 5, 6, 0]])
  seen_BTS = (segments_BT[:, :, None] == segments_BT[:, None]) & np.tri(9, dtype=bool)
  mask = torch.where(torch.tensor(seen_BTS), 0.0, torch.finfo(torch.float32).min)[:, None]
  with torch.no_grad():
    expected_BTV = theirs(torch.tensor(ids_BT), attention_mask=mask, position_ids=torch.tensor(place_BT)).logits.numpy()
  logits_BTV = jax.jit(lambda m: m.logits(hidden(m, ids_BT, segments_BT=jnp.asarray(segments_BT))))(model)
  np.testing.assert_allclose(logits_BTV, expected_BTV, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
@settings(max_examples=1, derandomize=True)
def test_loss_is_that_of_transformers_with_positions_left_out(kind, data):
  drawn = data.draw(architectures(kind))
  theirs, model = pair(drawn)
  ids_BT = tokens(drawn, 2, 2 * TRAINED)
  counts_BT = np.random.default_rng(drawn.seed).random(ids_BT.shape) < 0.7
  labels_BT = torch.tensor(np.where(counts_BT, ids_BT, -100))
  with torch.no_grad():
    expected = float(theirs(torch.tensor(ids_BT), labels=labels_BT).loss)
  weight_BT = counts_BT[:, 1:].astype(np.float32)
  loss = jax.jit(summed_loss)(model, ids_BT, weight_BT) / weight_BT.sum()
  assert abs(float(loss) - expected) < 1e-5 * max(1.0, expected)


def summed_loss(model, ids_BT, weight_BT):
  # All tokens go in, as in transformers: dynamic RoPE depends on how many there are.
  x_BTD = model.norm(hidden(model, ids_BT)[:, :-1])
  return next_token_loss(x_BTD, model.head_DV(), jnp.asarray(ids_BT[:, 1:]), weight_BT)


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
@settings(max_examples=1, derandomize=True)
def test_bfloat16_is_as_close_to_float32_as_torch_in_bfloat16(kind, data):
  drawn = data.draw(architectures(kind))
  theirs, model = pair(drawn)
  ids_BT = tokens(drawn, 4, 2 * TRAINED)
  with torch.no_grad():
    exact = theirs(torch.tensor(ids_BT)).logits.numpy()
    error = theirs.bfloat16()(torch.tensor(ids_BT)).logits.float().numpy() - exact
  half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), model)
  own_error = np.asarray(jax.jit(lambda m: m(ids_BT))(half), np.float32) - exact
  assert np.sqrt((own_error**2).mean()) < 1.2 * np.sqrt((error**2).mean())
  assert abs(own_error).max() < 2 * abs(error).max()
