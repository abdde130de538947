"""Documents parted into calibration, training and held-out text that share no document and no paragraph."""

import dataclasses
import hashlib
import itertools
import logging
import re
from collections.abc import Iterable, Iterator, Sequence

from jaxchop.data.sources import Document
from jaxchop.errors import JaxchopError, UsageError

log = logging.getLogger("jaxchop")
# Shorter paragraphs ("See also:") stand in unrelated texts too and are left where they are.
MIN_WORDS = 5
_BLANK = re.compile(r"(\n\s*\n)")


@dataclasses.dataclass(frozen=True, slots=True)
class Splits:
  """Three parts of one text that never overlap."""

  # What layers are scored on.
  calibration: tuple[Document, ...]
  # What the pruned model is recovered on.
  training: tuple[Document, ...]
  # What quality is measured on.
  held_out: tuple[Document, ...]
  # Characters left out of calibration and training, because another part holds the same paragraphs.
  dropped: int


def split_documents(docs: Iterable[Document], *, held_out: float, calibration: float, seed: int) -> Splits:
  """Returns the documents in three parts; the shares are of characters, and a share of 0 leaves its part empty.

  The digest of a document's text and the seed decide where it goes, so the order of `docs` does not matter and equal
  texts stay together. Paragraphs of 5 words or more (blank lines around them, white space normalised) that the
  held-out part holds are removed from the other two, those of the calibration part from training. Raises UsageError on
  shares that leave no training text, JaxchopError when a part would be empty.
  """
  if min(held_out, calibration) < 0 or held_out + calibration >= 1:
    raise UsageError(
      f"held-out share {held_out} and calibration share {calibration}: neither may be negative, both together must "
      "stay below 1, so that text is left to train on"
    )
  groups = _groups(docs, seed)
  parts = 1 + (held_out > 0) + (calibration > 0)
  if len(groups) < parts:
    raise JaxchopError(
      f"the data holds {len(groups)} different documents, too few for {parts} parts: name a .jsonl with a document a "
      "line or a text with blank lines, or name held-out and calibration data of their own"
    )
  total = sum(map(_characters, groups))
  held, groups = _take(groups, held_out * total, leave=parts - 1)
  scored, groups = _take(groups, calibration * total, leave=1)
  return without_overlap(scored, _flat(groups), held)


def _groups(docs: Iterable[Document], seed: int) -> list[tuple[Document, ...]]:
  """Returns documents of equal text together, in the order of their digests."""
  keyed = sorted((hashlib.sha256(f"{seed}:{doc.text}".encode()).digest(), doc.name, doc) for doc in docs)
  return [tuple(doc for *_, doc in group) for _, group in itertools.groupby(keyed, key=lambda entry: entry[0])]


def _take(
  groups: Sequence[tuple[Document, ...]], target: float, leave: int
) -> tuple[tuple[Document, ...], list[tuple[Document, ...]]]:
  """Returns about `target` characters of documents, at least one, and the groups that are left, at least `leave`."""
  taken: list[tuple[Document, ...]] = []
  rest: list[tuple[Document, ...]] = []
  size = 0.0
  for index, group in enumerate(groups):
    fits = size + _characters(group) / 2 <= target
    if target and fits and len(rest) + len(groups) - index > leave:
      taken.append(group)
      size += _characters(group)
    else:
      rest.append(group)
  if target and not taken:
    smallest = min(range(len(rest)), key=lambda index: _characters(rest[index]))
    taken.append(rest.pop(smallest))
  return _flat(taken), rest


def without_overlap(
  calibration: tuple[Document, ...], training: tuple[Document, ...], held_out: tuple[Document, ...]
) -> Splits:
  """Returns the parts without the paragraphs that two of them hold: they stay in the held-out part, else calibration.

  Raises JaxchopError when nothing is left of a part.
  """
  seen = paragraphs(held_out)
  scored = tuple(cut_paragraphs(calibration, seen))
  trained = tuple(cut_paragraphs(training, seen | paragraphs(calibration)))
  for name, before, after in (("calibration", calibration, scored), ("training", training, trained)):
    if before and not after:
      raise JaxchopError(f"every paragraph of the {name} text also stands in another part: name more varied data")
  dropped = _characters(calibration) + _characters(training) - _characters(scored) - _characters(trained)
  log.info(
    "Text: %d characters for calibration, %d for training, %d held out; %d dropped that stand in two parts",
    *map(_characters, (scored, trained, held_out)),
    dropped,
  )
  return Splits(scored, trained, held_out, dropped)


def paragraph_keys(text: str) -> set[str]:
  """Returns the paragraphs of a text that count as its own: 5 words or more, white space normalised."""
  return {key for paragraph in _BLANK.split(text)[::2] if (key := _key(paragraph))}


def _key(paragraph: str) -> str:
  words = paragraph.split()
  return " ".join(words) if len(words) >= MIN_WORDS else ""


def paragraphs(docs: Iterable[Document]) -> set[str]:
  """Returns all paragraphs that count as their document's own."""
  return set().union(*(paragraph_keys(doc.text) for doc in docs))


def cut_paragraphs(docs: Iterable[Document], seen: set[str]) -> Iterator[Document]:
  """Yields the documents without the paragraphs in `seen`, and without those of which no text is left."""
  kept = (doc if paragraph_keys(doc.text).isdisjoint(seen) else _cut(doc, seen) for doc in docs)
  return (doc for doc in kept if doc.text.strip())


def _cut(doc: Document, seen: set[str]) -> Document:
  pieces = [*_BLANK.split(doc.text), ""]
  kept = [pieces[i] + pieces[i + 1] for i in range(0, len(pieces), 2) if _key(pieces[i]) not in seen]
  return Document(doc.name, "".join(kept))


def _flat(groups: Iterable[tuple[Document, ...]]) -> tuple[Document, ...]:
  return tuple(itertools.chain.from_iterable(groups))


def _characters(docs: Iterable[Document]) -> int:
  return sum(len(doc.text) for doc in docs)
