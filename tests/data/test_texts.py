"""Which text serves what: parts of one source, texts named one by one, caches."""

import json

import pytest

from jaxchop.config import DataConfig
from jaxchop.data.pack import pack
from jaxchop.data.texts import read_splits
from jaxchop.errors import UsageError

SHARED = "this paragraph of several words stands in two texts"


@pytest.fixture
def named(tmp_path, byte_tokenizer):
  """Paths of three texts and a cache, by name."""
  paths = {}
  for name in ("web", "code", "held"):
    texts = [f"{name} holds {n} words of its own, and no more" for n in range(9)] + [SHARED] * (name != "code")
    paths[name] = tmp_path / f"{name}.jsonl"
    paths[name].write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
  pack(["words of a cache " * 9], byte_tokenizer, seq_len=8, out=tmp_path / "cache", eos=256)
  return {name: str(path) for name, path in paths.items()} | {"cache": str(tmp_path / "cache")}


def test_a_source_alone_serves_all_three():
  texts = read_splits(DataConfig())
  assert texts.calibration and texts.held_out and texts.training
  assert texts.corpora == {"": texts.training}


def test_corpora_are_read_without_what_is_held_out(named):
  texts = read_splits(DataConfig(corpora={n: named[n] for n in ("web", "code", "cache")}, held_out=named["held"]))
  assert list(texts.corpora) == ["web", "code", "cache"]
  assert [doc.text for doc in texts.held_out].count(SHARED) == 1
  # Twice, because a corpus is read again and again.
  for _ in range(2):
    assert [doc.text.split()[0] for doc in texts.training] == ["web"] * 9 + ["code"] * 9
  assert str(texts.corpora["cache"]) == named["cache"]


@pytest.mark.parametrize("use", ["held_out", "calibration"])
def test_nothing_is_set_aside_from_a_cache_or_corpora(named, use):
  for config, what in (
    (DataConfig(source=named["cache"]), ".*cache"),
    (DataConfig(corpora={"web": named["web"]}), r"data\.corpora"),
  ):
    with pytest.raises(UsageError, match=rf"data\.{use}: no text is set aside from {what}; name some"):
      getattr(read_splits(config), use)


def test_a_cache_is_no_text(named):
  texts = read_splits(DataConfig(source=named["cache"], held_out=named["held"]))
  assert len(texts.held_out) == 10
  with pytest.raises(UsageError, match="is no plain text, which is needed; name files"):
    _ = texts.training


@pytest.mark.parametrize(
  ("config", "message"),
  [
    (DataConfig(corpora={"web": "a"}, weights={0: {"wbe": 1.0}}), r"data\.weights: wbe is none of data\.corpora"),
    (DataConfig(corpora={"../web": "a"}), r"data\.corpora: '\.\./web' is no name"),
    (DataConfig(weights={0: {"web": 1.0}}), "web is none of"),
  ],
)
def test_names_that_make_no_sense_are_refused(config, message):
  with pytest.raises(UsageError, match=message):
    read_splits(config)


def test_answers_of_a_source_of_conversations_are_set_aside(byte_tokenizer):
  config = DataConfig(source="alpaca:builtin", held_out_share=0.2)
  texts = read_splits(config, lambda: (byte_tokenizer, 256))
  asked = {document.name for document in texts.corpora[""]}
  measured = {document.name for document in (*texts.calibration, *texts.held_out)}
  assert len(measured) > 5 and len(asked) > 30 and not measured & asked
  assert next(iter(texts.held_out)).answers is None
  # What scores or measures needs no tokenizer, what trains does.
  assert read_splits(config).held_out == texts.held_out
  with pytest.raises(UsageError, match="alpaca:builtin is to train on, and this command trains nothing; name text"):
    _ = read_splits(config).corpora
