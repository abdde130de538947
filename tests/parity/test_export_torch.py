"""transformers opens what jaxchop wrote and continues a prompt with the same tokens as jaxchop does."""

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from jaxchop.cli import main  # noqa: E402
from jaxchop.hub.load import load_model, open_checkpoint  # noqa: E402
from jaxchop.hub.tokenizer import eos_ids  # noqa: E402
from jaxchop.model.generate import generate  # noqa: E402

pytestmark = pytest.mark.torch
PROMPTS = ("A list in Python is", "The capital of France is", "To open a file and read it line by line,")


def both(folder, new_tokens):
  """Returns what each side continues each prompt with, by its own tokenizer and its own reading of the folder."""
  theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
  tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
  checkpoint = open_checkpoint(str(folder))
  ours, eos = load_model(checkpoint), eos_ids(checkpoint)
  expected, found = [], []
  for prompt in PROMPTS:
    ids = tokenizer(prompt, return_tensors="pt")
    row = theirs.generate(**ids, max_new_tokens=new_tokens, do_sample=False)[0].tolist()
    expected.append(row[ids["input_ids"].shape[1] :])
    found += generate(ours, [ids["input_ids"][0].tolist()], max_new_tokens=new_tokens, eos=eos)
  return expected, found


@pytest.mark.parametrize("wish", [["--drop", "1:3"], ["--merge", "mka", "--count", "2"]], ids=["dropped", "merged"])
def test_a_small_export_continues_alike(tiny_folder, tmp_path, wish):
  assert main(["prune", str(tiny_folder(dtype="bfloat16")), *wish, "-o", str(tmp_path / "out"), "--quiet"]) == 0
  expected, found = both(tmp_path / "out", 12)
  assert found == expected
