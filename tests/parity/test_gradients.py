"""Every gradient is that of transformers' torch model, however the list of layers is walked."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
from torch_llama import KINDS, TRAINED, architectures, gradients, pair, tokens  # noqa: E402

from jaxchop.model.llama import hidden  # noqa: E402
from jaxchop.model.loss import next_token_loss  # noqa: E402
from jaxchop.model.tree import flatten  # noqa: E402

pytestmark = pytest.mark.torch
WALKS = st.sampled_from(
  [{"layout": layout, "remat": remat} for layout in ("scan", "unrolled") for remat in ("dots", "full")]
)


def mean_loss(model, ids_BT, walk):
  x_BTD = model.norm(hidden(model, ids_BT, **walk)[:, :-1])
  ids_BT = jnp.asarray(ids_BT)
  return next_token_loss(x_BTD, model.head_DV(), ids_BT[:, 1:], jnp.ones_like(ids_BT[:, 1:])) / ids_BT[:, 1:].size


def assert_equal_gradients(model, theirs, drawn, ids_BT, walk, tolerance):
  theirs.zero_grad()
  theirs(torch.tensor(ids_BT), labels=torch.tensor(ids_BT)).loss.backward()
  expected = flatten(gradients(theirs, drawn))
  found = flatten(jax.jit(jax.grad(lambda model: mean_loss(model, ids_BT, walk)))(model))
  assert found.keys() == expected.keys()
  for name, gradient in found.items():
    largest = float(abs(expected[name]).max())
    np.testing.assert_allclose(gradient, expected[name], rtol=0, atol=tolerance * largest + 1e-7, err_msg=name)


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
@settings(max_examples=2, derandomize=True)
def test_every_gradient_is_that_of_transformers(kind, data):
  drawn = data.draw(architectures(kind))
  theirs, model = pair(drawn)
  assert_equal_gradients(model, theirs, drawn, tokens(drawn, 2, 2 * TRAINED), data.draw(WALKS), 1e-4)
