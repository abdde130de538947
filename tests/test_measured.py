"""A model is measured once by each suite, wherever it lies and whatever it is called."""

import shutil

import pytest

from jaxchop import measured as room
from jaxchop.config import DataConfig, EvaluateConfig
from jaxchop.data.texts import read_splits
from jaxchop.measured import measured
from jaxchop.parallel.mesh import make_mesh
from jaxchop.training import MeshConfig

CONFIG = EvaluateConfig(suite=("perplexity",), window=32, stride=32, batch_size=2, max_windows=4)


@pytest.fixture
def texts(tmp_path, monkeypatch):
  monkeypatch.setenv("JAXCHOP_CACHE", str(tmp_path / "cache"))
  (tmp_path / "text.txt").write_text("the layers of the list, one by one. " * 40)
  return read_splits(DataConfig(source="builtin", held_out=str(tmp_path / "text.txt")))


@pytest.fixture
def runs(monkeypatch):
  """Suites that ran, by name."""
  names, run = [], room._run
  monkeypatch.setattr(room, "_run", lambda suite, asked: names.append(suite.name) or run(suite, asked))
  return names


def test_a_copy_of_a_model_is_not_measured_again_and_another_is(texts, runs, tiny_folder, tmp_path):
  folder = tiny_folder(seed=1)
  first = measured(str(folder), texts, CONFIG)
  copy = shutil.copytree(folder, tmp_path / "copy")
  again = measured(str(copy), texts, CONFIG)
  assert runs == ["perplexity"] and again["digest"] == first["digest"]
  assert again["suites"] == first["suites"] and again["path"] != first["path"]
  assert first["suites"]["perplexity"]["versions"]["jax"]
  other = measured(str(tiny_folder(seed=2)), texts, CONFIG)
  assert runs == ["perplexity"] * 2 and other["digest"] != first["digest"]


def test_a_model_that_is_spread_over_devices_is_the_same_model(texts, runs, tiny_folder, monkeypatch):
  folder = tiny_folder(seed=1)
  first = measured(str(folder), texts, CONFIG)
  monkeypatch.setattr(room, "own_mesh", lambda config: make_mesh(MeshConfig(fsdp=4), config, 4, 1))
  monkeypatch.setattr(room, "_VERSION", 0)
  again = measured(str(folder), texts, CONFIG)
  assert runs == ["perplexity"] * 2 and again["digest"] == first["digest"]
  assert again["bits_per_byte"] == pytest.approx(first["bits_per_byte"], rel=1e-6)


def test_settings_of_the_model_or_the_suite_are_another_measurement(texts, runs, tiny_folder):
  folder = tiny_folder(seed=1)
  measured(str(folder), texts, CONFIG)
  measured(str(folder), texts, EvaluateConfig(suite=("perplexity",), window=16, stride=16, batch_size=2, max_windows=4))
  measured(str(tiny_folder(seed=1, rope_theta=500.0)), texts, CONFIG)
  assert len(runs) == 3


def test_an_interruption_loses_nothing_that_was_answered(texts, tiny_folder, monkeypatch, tmp_path):
  folder, answered = tiny_folder(seed=1), []

  def broken(model, *parts):
    answered.append(0)
    if len(answered) == 2:
      raise KeyboardInterrupt
    return real(model, *parts)

  from jaxchop.evaluate import perplexity

  real = perplexity._nll
  monkeypatch.setattr(perplexity, "_nll", broken)
  with pytest.raises(KeyboardInterrupt):
    measured(str(folder), texts, CONFIG)
  assert len(answered) == 2
  found = measured(str(folder), texts, CONFIG)
  assert len(answered) == 3 and found["suites"]["perplexity"]["figures"]["perplexity"]["value"] > 1
  assert not [*(tmp_path / "cache").rglob("unfinished")]
