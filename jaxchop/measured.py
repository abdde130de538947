"""What a named model is worth, each suite measured once: results are kept by the model's content and what was asked."""

import functools
import hashlib
import json
import logging
import shutil
from typing import Any

from jaxchop.config import EvaluateConfig
from jaxchop.data.texts import Texts
from jaxchop.evaluate.answers import identity
from jaxchop.evaluate.measure import entry
from jaxchop.evaluate.suites import Asked, Suite, suites
from jaxchop.files import cache_folder
from jaxchop.parallel.rows import own_mesh
from jaxchop.run_folder import standing, stood
from jaxchop.subject import Subject
from jaxchop.versions import versions

log = logging.getLogger("jaxchop")
# Goes up when a suite of ours comes to give other numbers.
_VERSION = 1


def measured(name: str, texts: Texts, config: EvaluateConfig) -> dict[str, Any]:
  """Returns a model's entry, by suite, with its digest and the versions of what measured.

  Results stand in the cache, by the digest of the model and its tokenizer and by what was asked: a suite that stands is
  not measured again, and one that was interrupted goes on with what is left.
  """
  subject = Subject(name)
  load = lambda: subject.load(own_mesh(subject.checkpoint.architecture))  # noqa: E731
  asked = Asked(load, subject.tokenizer, eos=subject.eos, title=name)
  digest = _digest(subject, asked)
  folder = cache_folder() / "evaluations" / digest[:32]
  asked.folder, found = folder / "unfinished", {}
  for suite in suites(config, texts):
    key = [_VERSION, digest, suite.name, suite.key]
    path = folder / f"{suite.name}-{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]}.json"
    if stood(path, key) is not None:
      log.info("%s: %s stands in %s", name, suite.name, path)
    found[suite.name] = standing(path, key, functools.partial(_run, suite, asked))
  shutil.rmtree(asked.folder, ignore_errors=True)
  return {"path": name, "digest": digest, "layers": len(subject.keep), **entry(found)}


def _run(suite: Suite, asked: Asked) -> dict[str, Any]:
  return suite.run(asked) | {"versions": versions()}


def _digest(subject: Subject, asked: Asked) -> str:
  """Returns a sha256 over all that a model's answers depend on; a plain checkpoint is not loaded for it."""
  tokenizer = subject.tokenizer
  weights = subject.identity["digest"] if subject.plan is None else identity(asked.model)
  about = [
    weights,
    str(subject.checkpoint.architecture),
    subject.checkpoint.layers,
    subject.eos,
    tokenizer.bos_token_id,
  ]
  text = json.dumps([*about, tokenizer.backend_tokenizer.to_str()])
  return hashlib.sha256(text.encode()).hexdigest()
