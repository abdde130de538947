"""A broken GGUF file is refused in one line, before memory is taken."""

from pathlib import Path

import numpy as np
import tiny_models
from gguf_files import refusal, write_gguf
from hypothesis import given
from hypothesis import strategies as st

from jaxchop.errors import JaxchopError
from jaxchop.hub.load import open_checkpoint


def test_a_file_cut_short_anywhere_is_refused(make, tmp_path):
  raw = Path(make(num_hidden_layers=1)[0]).read_bytes()
  for length in [*range(0, 64), *np.linspace(64, len(raw) - 1, 60, dtype=int)]:
    (tmp_path / "cut.gguf").write_bytes(raw[:length])
    refusal(str(tmp_path / "cut.gguf"))


def test_lengths_that_lie_are_refused_before_memory_is_taken(make, tmp_path):
  raw = Path(make(num_hidden_layers=1)[0]).read_bytes()
  huge = (2**60).to_bytes(8, "little")
  tokens = raw.index(b"tokenizer.ggml.tokens") + len(b"tokenizer.ggml.tokens") + 8
  types = raw.index(b"tokenizer.ggml.token_type") + len(b"tokenizer.ggml.token_type") + 8
  first_text = raw.index(b"llama", 24 + 8 + len("general.architecture")) - 8
  tensor = raw.index(b"token_embd.weight") + len("token_embd.weight") + 4
  for position in (8, 16, tokens, types, first_text, tensor):
    (tmp_path / "lie.gguf").write_bytes(raw[:position] + huge + raw[position + 8 :])
    refusal(str(tmp_path / "lie.gguf"))


def test_a_count_of_layers_that_no_file_could_hold_is_refused_at_once(make, tmp_path):
  raw = bytearray(Path(make(num_hidden_layers=1)[0]).read_bytes())
  count = raw.index(b"llama.block_count") + len("llama.block_count") + 4
  raw[count : count + 4] = (2**30).to_bytes(4, "little")
  (tmp_path / "lie.gguf").write_bytes(raw)
  assert "1,073,741,824 layers" in refusal(str(tmp_path / "lie.gguf"))


@given(data=st.data())
def test_no_flipped_byte_of_the_header_escapes_as_anything_but_a_refusal(data, tmp_path_factory, tiny_tokenizer):
  folder = tmp_path_factory.getbasetemp()
  if not (folder / "whole.gguf").exists():
    config = {**tiny_models.CONFIG, "num_hidden_layers": 1}
    write_gguf(folder / "whole.gguf", config, tiny_models.random_weights(config), tiny_tokenizer)
  raw = bytearray((folder / "whole.gguf").read_bytes())
  raw[data.draw(st.integers(0, len(raw) - 40_000))] = data.draw(st.integers(0, 255))
  (folder / "flip.gguf").write_bytes(raw)
  try:
    open_checkpoint(str(folder / "flip.gguf"))
  except JaxchopError as error:
    assert "\n" not in str(error)
