"""A small cache built by two processes beside this one: `python tiny_build.py FOLDER`."""

import sys
from pathlib import Path

TEXTS = tuple(f"text {n}: " + f"word{n} " * (n * n % 37) for n in range(400))


def build(folder: Path, workers: int) -> None:
  # Here, so that the processes that tokenise import none of it.
  from byte_tokens import build as tokenizer

  from jaxchop.data import pack as packing
  from jaxchop.data.sources import Document

  packing.SHARD_BYTES, packing._BATCH = 1000, 500
  documents = [Document(f"text:{n}", text) for n, text in enumerate(TEXTS)]
  packing.pack(documents, tokenizer(), seq_len=16, out=folder, eos=256, workers=workers, segments=True)


if __name__ == "__main__":
  build(Path(sys.argv[1]), workers=2)
