"""What the unpruned model writes itself, for the pruned one to train on: self-data distillation (arXiv 2410.09982).

It answers conversations in place of the answers that are there, and continues texts from some of their tokens; the
pruned model learns from words that it once would have said. They are written to a file, a batch at a time: a job that
was stopped goes on behind the last whole batch.
"""

import json
import logging
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from jaxchop.config import OwnConfig
from jaxchop.data.sources import Document
from jaxchop.errors import JaxchopError
from jaxchop.files import write_text
from jaxchop.model.generate import Sampling, generate
from jaxchop.model.llama import Llama
from jaxchop.progress import stage

if TYPE_CHECKING:
  from transformers import PreTrainedTokenizerFast

log = logging.getLogger("jaxchop")


def own_words(
  model: Callable[[], Llama],
  tokenizer: "PreTrainedTokenizerFast",
  documents: Iterable[Document],
  out: Path,
  config: OwnConfig,
  *,
  eos: Collection[int],
  longest: int,
  about: str,
  read: int,
) -> list[Document]:
  """Returns documents: how given ones begin, and what the model makes of that, which is to be predicted.

  A long text gives as many as it is long: one for each stretch of what is read and written. `model` is called only when
  something is left to write, `about` names all that the words depend on. Beginnings of more than `longest` tokens are
  left out. The training will read `read` tokens: writing much more is warned of. Raises JaxchopError where no beginning
  is short enough.
  """
  short = (one for one in _asked(documents, tokenizer, config) if len(one[2]) <= longest)
  asked = list(islice(short, config.documents))
  if not asked:
    raise JaxchopError(f"no document begins within {longest} tokens, so there is nothing to go on from; raise seq_len")
  _warn_of_more(asked, config.new_tokens, read)
  done = _read(out, about)
  size = config.batch_size
  done = done if len(done) == len(asked) else done[: len(done) // size * size]
  write_text(out, "".join([_line({"about": about}), *map(_as_line, done)]))
  sampling = Sampling(temperature=config.temperature, top_p=config.top_p)
  with stage("Writing text to train on", len(asked), "documents") as bar:
    bar.advance(len(done))
    for start in range(len(done), len(asked), size):
      batch = asked[start : start + size]
      # Filled up with the last one, so that all batches are one program.
      prompts = [ids for *_, ids in batch] + [batch[-1][2]] * (size - len(batch))
      seed = zlib.crc32(f"{config.seed}:{start}".encode())
      new = generate(model(), prompts, max_new_tokens=config.new_tokens, eos=eos, sampling=sampling, seed=seed)
      words = [_said(name, text, str(tokenizer.decode(ids))) for (name, text, _), ids in zip(batch, new, strict=False)]
      with out.open("a", encoding="utf-8") as file:
        file.writelines(map(_as_line, words))
      done += words
      bar.advance(len(batch))
  return done


def _asked(
  documents: Iterable[Document], tokenizer: "PreTrainedTokenizerFast", config: OwnConfig
) -> Iterator[tuple[str, str, list[int]]]:
  """Yields name, beginning and its tokens: one of a conversation, one of each stretch of a text."""
  for document in documents:
    text = document.text if document.answers is None else document.text[: document.answers[0][0]]
    # Unlike the tokenizer around it, this one does not warn of texts that are longer than the model's window.
    found = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False)
    # Each time it is asked for them, it makes them anew.
    all_ids, offsets = found.ids, found.offsets
    if document.answers is not None and all_ids:
      yield document.name, text, all_ids
    if document.answers is None:
      for start in range(0, len(all_ids), config.prompt_tokens + config.new_tokens):
        ids = all_ids[start : start + config.prompt_tokens]
        first, last = offsets[start], offsets[start + len(ids) - 1]
        yield f"{document.name}+{start}", text[first[0] : last[1]], ids


def _warn_of_more(asked: Collection[tuple[str, str, list[int]]], new_tokens: int, read: int) -> None:
  most = sum(len(ids) + new_tokens for *_, ids in asked)
  if most > 2 * read:
    log.warning(
      "data.own.documents: up to %d tokens are written in %d documents, and recover.steps reads %d; about %d documents "
      "are enough",
      *(most, len(asked), read, -(-len(asked) * read // most)),
    )


def _said(name: str, beginning: str, words: str) -> Document:
  return Document(name, beginning + words, ((len(beginning), len(beginning) + len(words)),))


def _read(path: Path, about: str) -> list[Document]:
  """Returns what was written about the same, up to the first line that is not whole."""
  lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []
  if lines[:1] != [_line({"about": about}).rstrip("\n")]:
    return []
  return [Document(name, text, ((begin, len(text)),)) for name, text, begin in map(json.loads, lines[1:])]


def _as_line(document: Document) -> str:
  assert document.answers is not None
  return _line([document.name, document.text, document.answers[0][0]])


def _line(content: object) -> str:
  return json.dumps(content, ensure_ascii=False) + "\n"
