"""What a job trains on, packed once into its run folder; what the unpruned model has to write first, it writes here."""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxchop.data.pack import pack
from jaxchop.data.packed import MANIFEST, read_manifest, tokenizer_digest
from jaxchop.data.sources import Document, digest
from jaxchop.data.texts import Own
from jaxchop.data.written import Written
from jaxchop.files import read_json
from jaxchop.model.flops import forward_flops
from jaxchop.own_words import own_words
from jaxchop.run_folder import standing

if TYPE_CHECKING:
  from jaxchop.job import Job

# Characters of text for which it is worth to start one more process that tokenises.
_WORTH = 50_000_000


def identity(job: "Job", text: Iterable[Document] | Own | Path) -> Any:
  """Returns what a corpus is known by: it names all that the packed tokens depend on but the tokenizer."""
  if isinstance(text, Path):
    return read_manifest(text).digest
  return [digest(text.begun), job.recipe.data.own] if isinstance(text, Own) else digest(text)


def packed(job: "Job", name: str, text: Iterable[Document] | Own) -> Path:
  """Returns the folder of a corpus' token records, after packing them unless they stand."""
  tokenizer, length, eos = job.subject.tokenizer, job.recipe.recover.seq_len, job.subject.eos[0]
  out, own = job.folder.data / name, isinstance(text, Own)
  known = identity(job, text), job.subject.identity if own else None

  def make() -> dict[str, Any]:
    documents, flops = _own_words(job, name, text.begun, known) if isinstance(text, Own) else (text, 0.0)
    size = sum(len(document.text) for document in documents)
    workers = min(1 + size // _WORTH, os.cpu_count() or 1)
    whole = isinstance(text, Own | Written)
    found = pack(documents, tokenizer, seq_len=length, out=out, eos=eos, whole=whole, workers=workers, overwrite=True)
    return {"digest": found.digest, "flops": flops}

  key = known, tokenizer_digest(tokenizer), length
  job.hosts.first("packed", lambda: standing(_note(job, name), key, make, product=out / MANIFEST))
  return out


def flops(job: "Job") -> float:
  """Returns the operations that the unpruned model took to write what the job trains on, by formula."""
  _ = job.corpora
  notes = (_note(job, name) for name, text in job.texts.corpora.items() if isinstance(text, Own))
  return sum(read_json(note)["flops"] for note in notes)


def _note(job: "Job", name: str) -> Path:
  return job.folder.measured / ("-".join(filter(None, ("data", name))) + ".json")


def _own_words(job: "Job", name: str, begun: Iterable[Document], about: Any) -> tuple[list[Document], float]:
  subject, checkpoint, recover, prune = job.subject, job.subject.checkpoint, job.recipe.recover, job.recipe.prune
  found = own_words(
    lambda: job.whole,
    subject.tokenizer,
    begun,
    job.folder.path / "own" / f"{name or 'source'}.jsonl",
    job.recipe.data.own,
    eos=subject.eos,
    longest=recover.seq_len,
    about=json.dumps(about, sort_keys=True, default=str),
    read=max(recover.steps, prune.recover_between, prune.fade) * recover.batch_size * recover.seq_len,
  )
  encode = subject.tokenizer.backend_tokenizer.encode
  tokens = sum(len(encode(document.text, add_special_tokens=False).ids) for document in found)
  length = max(tokens // len(found), 1)
  return found, tokens * forward_flops(checkpoint.architecture, checkpoint.layers, length).total
