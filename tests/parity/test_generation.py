"""Greedy generation gives the tokens of transformers' torch model: batched, padded on the left, stopped by any EOS."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
from torch_llama import KINDS, TRAINED, architectures, pair, tokens  # noqa: E402

from jaxchop.model.generate import generate  # noqa: E402

pytestmark = pytest.mark.torch


def torch_greedy(theirs, prompts, new_tokens, eos):
  """Returns the new tokens of each row up to its first EOS, from one padded batch."""
  slots = max(map(len, prompts))
  ids_BT = torch.tensor([[0] * (slots - len(prompt)) + list(prompt) for prompt in prompts])
  mask_BT = torch.tensor([[0] * (slots - len(prompt)) + [1] * len(prompt) for prompt in prompts])
  with torch.no_grad():
    rows = theirs.generate(
      ids_BT, attention_mask=mask_BT, max_new_tokens=new_tokens, do_sample=False, eos_token_id=eos, pad_token_id=0
    )
  return [until_eos(row, eos or ()) for row in rows[:, slots:].tolist()]


def until_eos(row, eos):
  ends = [index for index, token in enumerate(row) if token in eos]
  return row[: ends[0] + 1] if ends else row


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
@settings(max_examples=2, derandomize=True)
def test_a_padded_batch_continues_as_in_transformers(kind, data):
  drawn = data.draw(architectures(kind))
  theirs, model = pair(drawn)
  ids = tokens(drawn, 3, TRAINED + 2).tolist()
  prompts = [ids[0], ids[1][:5], ids[2][:1]]
  free = torch_greedy(theirs, prompts, TRAINED, None)
  assert generate(model, prompts, max_new_tokens=TRAINED) == free
  # Two ids that really come up end rows early, each at its own step.
  eos = [free[0][3], free[1][6]]
  theirs, _ = pair(drawn)
  expected = torch_greedy(theirs, prompts, TRAINED, eos)
  assert generate(model, prompts, max_new_tokens=TRAINED, eos=eos) == expected
  assert len(expected[0]) <= 4
