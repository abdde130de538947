import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxchop.errors import JaxchopError, UsageError
from jaxchop.evaluate.protocol import PROTOCOLS, Protocol, Windows

TEXT = "the layers of the list, Straße 🙂🙂 \n\n and the end of the list: 日本語 " * 3


@st.composite
def protocols(draw):
  window = draw(st.integers(2, 40))
  bos = draw(st.sampled_from(["none", "first", "every"]))
  return Protocol(window=window, stride=draw(st.integers(1, window)), bos=bos)


def scored(windows):
  """Every scored (context, target), in order."""
  batch = windows.batch(0, len(windows))
  rows = zip(batch.ids.tolist(), batch.target.tolist(), batch.weight.tolist(), strict=True)
  return [(ids[: n + 1], target[n]) for ids, target, weight in rows for n in range(len(ids)) if weight[n]]


def expected(ids, bos_id, protocol):
  """The definition, a token at a time: the context is what the window holds before the target."""
  if protocol.bos == "first":
    ids = [bos_id, *ids]
  before = [bos_id] if protocol.bos == "every" else []
  found, done = [], 0
  for start in range(0, len(ids) - protocol.window + 1, protocol.stride):
    stop = start + protocol.window
    for place in range(max(start, done), stop):
      if context := before + ids[start:place]:
        found.append((context, ids[place]))
    done = stop
  return found


@given(protocols())
def test_each_token_is_scored_once_with_the_context_of_its_window(tokenizer, protocol):
  ids = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
  windows = Windows(tokenizer, TEXT, protocol)
  assert scored(windows) == expected(ids, tokenizer.bos_token_id, protocol)
  batch = windows.batch(0, len(windows))
  assert batch.ids.shape == batch.target.shape == (len(windows), protocol.window)
  assert batch.ids.dtype == batch.target.dtype == np.int32 and batch.weight.dtype == np.float32


@given(protocols(), st.data())
def test_any_windows_can_be_cut_alone(tokenizer, protocol, data):
  windows = Windows(tokenizer, TEXT, protocol)
  start = data.draw(st.integers(0, len(windows) - 1))
  whole, part = windows.batch(0, len(windows)), windows.batch(start, start + 1)
  for field in dataclasses.fields(whole):
    assert np.array_equal(getattr(whole, field.name)[start : start + 1], getattr(part, field.name))


@given(st.text(min_size=1, max_size=60))
def test_bytes_of_all_tokens_are_the_bytes_of_the_text(tokenizer, text):
  count = len(tokenizer(text, add_special_tokens=False)["input_ids"])
  if count >= 2:
    batch = Windows(tokenizer, text, Protocol(window=count, stride=count, bos="every")).batch(0, 1)
    assert batch.bytes.sum() == len(text.encode()) and batch.bytes.min() >= 0


def test_bytes_stand_beside_their_token(tokenizer):
  text = "é🙂 the x"
  batch = Windows(tokenizer, text, Protocol(window=3, stride=3, bos="every")).batch(0, 2)
  tokens = tokenizer.convert_ids_to_tokens(batch.target.ravel().tolist())
  sizes = dict(zip(tokens, batch.bytes.ravel().tolist(), strict=True))
  # A character that is cut into tokens counts with the first of them.
  assert tokens[:2] == ["Ã", "©"] and (sizes["Ã"], sizes["©"]) == (2, 0)
  assert sizes.get("Ġthe", 4) == 4


def test_a_limit_takes_the_first_windows(tokenizer):
  whole = Protocol(window=8, stride=4)
  limited = dataclasses.replace(whole, max_windows=3)
  assert len(Windows(tokenizer, TEXT, limited)) == 3
  assert scored(Windows(tokenizer, TEXT, limited)) == scored(Windows(tokenizer, TEXT, whole))[: 7 + 4 + 4]
  assert len(Windows(tokenizer, TEXT, dataclasses.replace(whole, max_windows=10**6))) == len(
    Windows(tokenizer, TEXT, whole)
  )


def test_a_protocol_is_said_in_one_line():
  assert str(Protocol(window=512, stride=512)) == (
    r'window 512, stride 512, bos none, documents joined by "\n\n", split held_out'
  )
  limited = Protocol(window=128, stride=64, bos="every", join="", split="test", max_windows=20)
  assert str(limited) == ('window 128, stride 64, bos every, documents joined by "", split test, first 20 windows')


def test_the_protocols_of_the_literature_have_names():
  joined = r'bos first, documents joined by "\n\n", split held_out'
  assert {name: str(protocol) for name, protocol in PROTOCOLS.items()} == {
    "windows-2048": f"window 2048, stride 2048, {joined}",
    "windows-128": f"window 128, stride 128, {joined}",
  }


@pytest.mark.parametrize("text", ["", "a few words"])
def test_a_text_shorter_than_a_window_says_what_it_has(tokenizer, text):
  count = len(tokenizer(text, add_special_tokens=False)["input_ids"])
  with pytest.raises(JaxchopError, match=rf"held_out text has {count} tokens, less than one window of 64: .* {count}$"):
    Windows(tokenizer, text, Protocol(window=64, stride=64))


def test_a_bos_that_the_tokenizer_lacks_is_refused(tiny_tokenizer):
  import transformers

  bare = transformers.PreTrainedTokenizerFast(tokenizer_object=tiny_tokenizer)
  with pytest.raises(UsageError, match="the tokenizer has no BOS token, but bos is 'first'; set bos to none"):
    Windows(bare, TEXT, Protocol(window=8, stride=8, bos="first"))
  assert len(Windows(bare, TEXT, Protocol(window=8, stride=8))) > 1


@pytest.mark.parametrize(
  "settings",
  [{"window": 1, "stride": 1}, {"window": 8, "stride": 0}, {"window": 8, "stride": 9}, {"window": 8, "stride": -8}],
)
def test_impossible_windows_are_refused(settings):
  with pytest.raises(UsageError, match="a window holds 2 tokens or more, a stride at most a window"):
    Protocol(**settings)


def test_an_impossible_limit_is_refused():
  with pytest.raises(UsageError, match="max_windows is 0"):
    Protocol(window=8, stride=8, max_windows=0)
