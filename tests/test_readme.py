"""The README's Python does what it says, on a tiny model in place of the real one."""

import re
from pathlib import Path

README = (Path(__file__).parent.parent / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_no_public_name_is_shadowed_by_a_room_that_was_imported():
  import jaxchop.pipeline

  assert all(callable(getattr(jaxchop, name)) for name in jaxchop.__all__)


def test_the_ten_lines_and_the_slice_run_as_printed(tiny_folder, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  job, slice_of_a_list = BLOCKS
  job = job.replace('open_checkpoint("builtin")', f'open_checkpoint("{tiny_folder(num_hidden_layers=8)}")')
  job = job.replace("range(30)", "range(8)").replace("RecoverConfig()", "RecoverConfig(steps=2, seq_len=256)")
  names: dict = {}
  exec(job, names)
  assert len(names["again"].model.layers) == 2
  assert (tmp_path / "small" / "config.json").is_file()
  exec("from flax import nnx; import jax; keep = (0, 3); ids_BT = ids_NT[:1, :8]", names)
  exec(slice_of_a_list, names)
  assert names["logits_BTV"].shape == (1, 8, names["model"].config.vocab_size)
  assert len(names["model"].layers) == 2
