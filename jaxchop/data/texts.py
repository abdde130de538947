"""The text of a recipe by its uses: split from one source, or named one by one; to train on, caches as well."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jaxchop.config import DataConfig
from jaxchop.data.conversations import conversations
from jaxchop.data.packed import MANIFEST
from jaxchop.data.remote import fetched, is_remote, is_remote_cache
from jaxchop.data.sources import Corpus, Document, documents
from jaxchop.data.split import Splits, cut_paragraphs, paragraphs, split_documents, without_overlap
from jaxchop.data.written import Written, is_written
from jaxchop.errors import UsageError

if TYPE_CHECKING:
  from transformers import PreTrainedTokenizerFast

# What stands before a spec whose texts the unpruned model is to go on with.
OWN = "self:"
# A tokenizer and the token that ends a text.
Speech = tuple["PreTrainedTokenizerFast", int]


def read_splits(config: DataConfig, speech: Callable[[], Speech] | None = None) -> "Texts":
  """Returns calibration, training and held-out text that never overlap; what is not named is split from the source.

  Conversations to train on need `speech`.
  """
  return Texts(config, speech)


def is_cache(spec: str) -> bool:
  """Returns whether a spec names a folder that `pack` wrote, here or in a bucket."""
  return is_remote_cache(spec) if is_remote(spec) else (Path(spec) / MANIFEST).is_file()


def local_cache(folder: str) -> Path:
  """Returns the folder of a cache on this machine; one in a bucket is copied, if it is not here yet."""
  return fetched(folder) if is_remote(folder) else Path(folder)


class Texts:
  """Three texts that share no document and no paragraph, read when first asked for.

  Where corpora or a cache are trained on, calibration and held-out text have to be named; their paragraphs are left out
  of corpora that are text, and conversations that answer with one. A cache is taken as it is: whoever built it has
  chosen its text. Of conversations as the only source, calibration and held-out text are answers.
  """

  def __init__(self, config: DataConfig, speech: Callable[[], Speech] | None = None):
    """Raises UsageError when it is not clear what is trained on."""
    self.config, self._speech = config, speech
    # What is trained on, by name; the only source has none.
    self.specs: dict[str, str] = dict(config.corpora) or {"": config.source}
    if unknown := {name for weights in config.weights.values() for name in weights} - self.specs.keys() - {""}:
      raise UsageError(f"data.weights: {', '.join(sorted(unknown))} is none of data.corpora; name it there")
    for spec in self.specs.values():
      rest = spec.removeprefix(OWN)
      if rest != spec and (rest.startswith(OWN) or is_cache(rest)):
        raise UsageError(f"data: {spec} names no text or conversations to go on from; name some behind {OWN}")
    for name in config.corpora:
      if not name.replace("-", "").replace("_", "").isalnum():
        raise UsageError(f"data.corpora: {name!r} is no name; use letters, digits, - and _")
    self._whole = bool(config.corpora) or is_cache(config.source)
    for use in ("calibration", "held_out"):
      if is_written(spec := getattr(config, use) or "") or spec.startswith(OWN):
        raise UsageError(f"data.{use}: {spec} is to train on; name text")

  @property
  def calibration(self) -> tuple[Document, ...]:
    """What layers are scored on."""
    self.require("calibration")
    return self._parts.calibration

  @property
  def held_out(self) -> tuple[Document, ...]:
    """What quality is measured on."""
    self.require("held_out")
    return self._parts.held_out

  @functools.cached_property
  def as_published(self) -> tuple[Document, ...]:
    """What quality is measured on, with the blank rows of its source: published perplexities are of all rows joined."""
    if (spec := self.config.held_out) is None:
      return self.held_out
    return tuple(documents(spec, text_field=self.config.text_field, blank=True))

  @property
  def training(self) -> Iterable[Document]:
    """What the pruned model is recovered on, as far as it is plain text; raises UsageError when none of it is."""
    texts = [text for text in self.corpora.values() if not isinstance(text, Path | Written | Own)]
    if not texts:
      raise UsageError(f"data.source: {', '.join(self.specs.values())} is no plain text, which is needed; name files")
    return texts[0] if len(texts) == 1 else Several(texts)

  @functools.cached_property
  def corpora(self) -> dict[str, "Iterable[Document] | Own | Path"]:
    """What is trained on, by name: documents, those whose words are to be the model's own, or a cache's folder."""
    return {name: self._corpus(spec) for name, spec in self.specs.items()}

  def require(self, use: str) -> None:
    """Raises UsageError when text of this use is neither named nor can be set aside."""
    if self._whole and not getattr(self.config, use):
      what = "data.corpora" if self.config.corpora else self.config.source
      raise UsageError(f"data.{use}: no text is set aside from {what}; name some, as builtin")

  def _corpus(self, spec: str) -> "Iterable[Document] | Own | Path":
    if spec.startswith(OWN):
      begun = self._corpus(spec.removeprefix(OWN))
      assert not isinstance(begun, Path | Own)
      return Own(begun)
    if is_cache(spec):
      return local_cache(spec)
    if not (self._whole or is_written(spec)):
      return self._parts.training
    elsewhere = (*self._parts.calibration, *self._parts.held_out)
    used = paragraphs(elsewhere)
    if is_written(spec):
      if self._speech is None:
        raise UsageError(f"data: {spec} is to train on, and this command trains nothing; name text")
      return Written(spec, *self._speech(), frozenset(used | {document.name for document in elsewhere}))
    return _Without(Corpus([spec], text_field=self.config.text_field), used)

  @functools.cached_property
  def _parts(self) -> Splits:
    config = self.config
    calibration, held_out = (self._named(spec) for spec in (config.calibration, config.held_out))
    if self._whole:
      return without_overlap(calibration, (), held_out)
    own = split_documents(
      self._source(),
      held_out=0.0 if config.held_out else config.held_out_share,
      calibration=0.0 if config.calibration else config.calibration_share,
      seed=config.seed,
    )
    if not calibration and not held_out:
      return own
    return without_overlap(calibration or own.calibration, own.training, held_out or own.held_out)

  def _source(self) -> Iterator[Document]:
    spec = self.config.source.removeprefix(OWN)
    if is_written(spec):
      return (one.answers for one in conversations(spec.partition(":")[2]))
    return documents(spec, text_field=self.config.text_field)

  def _named(self, spec: str | None) -> tuple[Document, ...]:
    return tuple(documents(spec, text_field=self.config.text_field)) if spec else ()


@dataclasses.dataclass(frozen=True, slots=True)
class Own:
  """Documents of which the beginnings count: the unpruned model goes on from there (own_words.py)."""

  begun: Iterable[Document]


@dataclasses.dataclass(frozen=True, slots=True)
class _Without:
  """Documents without some paragraphs, cut while they are read."""

  documents: Iterable[Document]
  paragraphs: set[str]

  def __iter__(self) -> Iterator[Document]:
    return cut_paragraphs(self.documents, self.paragraphs)


@dataclasses.dataclass(frozen=True, slots=True)
class Several:
  """The documents of several corpora, one after the other."""

  corpora: Sequence[Iterable[Document]]

  def __iter__(self) -> Iterator[Document]:
    return (document for corpus in self.corpora for document in corpus)
