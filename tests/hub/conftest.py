"""GGUF files made on the spot."""

import pytest
import tiny_models
from gguf_files import TYPES, write_gguf


@pytest.fixture
def make(tmp_path, tiny_tokenizer):
  """`make(kind=..., extra=..., change=..., **settings)` returns a GGUF file's name, its config and its weights."""

  def made(*, kind=TYPES.F32, extra=None, change=None, **settings):
    config = {**tiny_models.CONFIG, **settings}
    weights = tiny_models.random_weights(config)
    if change:
      change(weights)
    return write_gguf(tmp_path / "m.gguf", config, weights, tiny_tokenizer, kind=kind, extra=extra), config, weights

  return made
