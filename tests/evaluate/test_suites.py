"""Suites are found by name, say how they measured, and depend on nothing but the model and their key."""

import dataclasses

import pyarrow
import pyarrow.parquet
import pytest

from jaxchop.config import DataConfig, EvaluateConfig
from jaxchop.data.texts import read_splits
from jaxchop.errors import UsageError
from jaxchop.evaluate import harness_tasks
from jaxchop.evaluate.harness_tasks import Tasks
from jaxchop.evaluate.measure import measure
from jaxchop.evaluate.perplexity import perplexity
from jaxchop.evaluate.protocol import Protocol
from jaxchop.evaluate.suites import Asked, suites

SMALL = EvaluateConfig(window=32, stride=32, batch_size=2, max_windows=3, probe_items=1, sample_tokens=2)


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
  """Rows as WikiText has them: blank ones between, line ends inside."""
  path = tmp_path_factory.mktemp("texts") / "rows.parquet"
  rows = ["", " = The list = \n", "", "the layers of the list, one by one \n" * 30, "", "", "and its end \n" * 20]
  pyarrow.parquet.write_table(pyarrow.table({"text": rows}), path)
  return read_splits(DataConfig(source="builtin", held_out=str(path))), rows


def asked(model, tokenizer, **changes):
  return Asked(lambda: model, tokenizer, eos=[tokenizer.eos_token_id], title="it", **changes)


def test_published_perplexities_are_of_all_rows_joined(model, tokenizer, texts):
  texts, rows = texts
  assert [document.text for document in texts.as_published] == rows
  assert "" not in [document.text for document in texts.held_out]
  config = dataclasses.replace(SMALL, suite=("windows-128",), max_windows=None)
  (suite,) = suites(config, texts)
  result = suite.run(asked(model, tokenizer))
  protocol = Protocol(window=128, stride=128)
  wanted = perplexity(model, tokenizer, texts.as_published, protocol, batch_size=1)
  assert result["figures"]["perplexity, windows-128"]["value"] == pytest.approx(wanted.perplexity, rel=1e-5)
  assert "window 128, stride 128, bos none" in result["protocol"]


def test_a_tokenizer_that_begins_texts_with_bos_does_so_here(model, tokenizer, texts, monkeypatch):
  real = type(tokenizer).encode

  def encode(self, text, **options):
    return [*([] if options else [self.bos_token_id]), *real(self, text, **options)]

  monkeypatch.setattr(type(tokenizer), "encode", encode)
  (suite,) = suites(dataclasses.replace(SMALL, suite=("windows-128",)), texts[0])
  assert "bos first" in suite.run(asked(model, tokenizer))["protocol"]


def test_an_entry_has_every_suite_and_its_perplexities_by_protocol(model, tokenizer, texts):
  config = dataclasses.replace(SMALL, suite=("perplexity", "documents", "capability", "perplexity"))
  entry = measure(asked(model, tokenizer), texts[0], config)
  assert list(entry["suites"]) == ["perplexity", "documents", "capability"]
  (value,) = entry["perplexity"].values()
  figures = entry["suites"]["perplexity"]["figures"]
  assert figures["perplexity"]["value"] == value and len(figures["perplexity"]["samples"]) == 3
  assert entry["bits_per_byte"] == figures["bits per byte"]["value"]
  assert set(entry["suites"]["documents"]["figures"]) == {
    "perplexity a word",
    "perplexity a byte",
    "bits per byte, documents",
  }
  able = entry["suites"]["capability"]["figures"]
  assert len(able) == 6 and len(able["small tasks solved"]["samples"]) == 20
  assert len(entry["samples"]) == 3


def test_what_was_answered_before_an_interruption_is_not_asked_again(model, tokenizer, texts, tmp_path, monkeypatch):
  config = dataclasses.replace(SMALL, suite=("perplexity", "capability"))
  first = [suite.run(asked(model, tokenizer, folder=tmp_path)) for suite in suites(config, texts[0])]
  for name in ("perplexity.window_nll", "capability.generate"):
    monkeypatch.setattr(f"jaxchop.evaluate.{name}", None)
  again = [suite.run(asked(model, tokenizer, folder=tmp_path)) for suite in suites(config, texts[0])]
  assert again == first


def test_the_key_of_a_suite_names_text_and_settings(texts):
  def key(**changes):
    (suite,) = suites(dataclasses.replace(SMALL, **changes), texts[0])
    return suite.key

  assert key(suite=("perplexity",)) != key(suite=("perplexity",), window=16, stride=16)
  assert key(suite=("perplexity",)) == key(suite=("perplexity",), probe_items=3)
  assert key(suite=("capability",)) != key(suite=("capability",), probe_items=3)
  other = read_splits(DataConfig(source="builtin"))
  (suite,) = suites(dataclasses.replace(SMALL, suite=("perplexity",)), other)
  assert suite.key != key(suite=("perplexity",))


def test_other_names_are_tasks_of_lm_eval(model, tokenizer, texts, local_tasks, monkeypatch):
  local = Tasks(include_path=local_tasks, include_defaults=False)
  monkeypatch.setattr(harness_tasks, "tasks_of", lambda folder=None: local)
  config = dataclasses.replace(SMALL, suite=("local_choices",), task_limit=6, task_folder=str(local_tasks))
  (suite,) = suites(config, texts[0])
  result = suite.run(asked(model, tokenizer))
  figures = result["figures"]
  assert set(figures) == {"local_choices acc", "local_choices acc_norm"}
  hits = figures["local_choices acc"]
  assert (
    len(hits["samples"]) == 6 and hits["value"] == pytest.approx(sum(hits["samples"]) / 6) and hits["unit"] == "share"
  )
  assert "lm-eval" in result["protocol"] and "local_choices 1.0" in result["protocol"]
  with pytest.raises(UsageError, match="task nothing is unknown"):
    suites(dataclasses.replace(SMALL, suite=("nothing",)), texts[0])
