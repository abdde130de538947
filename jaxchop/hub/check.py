"""Proves an export: digests, config against weights, logits against cached decode and against the source, who loads it.

`python -m jaxchop.hub.check FOLDER` prints the report as one JSON object and exits with 0 when all is well.
"""

import argparse
import dataclasses
import importlib
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxchop.errors import JaxchopError, UsageError
from jaxchop.hub import digest, names
from jaxchop.hub.checkpoint import Checkpoint, Tensor
from jaxchop.hub.facts import Facts, Line, read_facts
from jaxchop.hub.finite import first_not_finite
from jaxchop.hub.lint import lint
from jaxchop.hub.load import load_model, open_checkpoint
from jaxchop.hub.probe import cacheable, cached_logits, full_logits, probe, trained_length
from jaxchop.hub.rewrite import row_blocks
from jaxchop.hub.staging import MANIFEST
from jaxchop.hub.targets import targets
from jaxchop.hub.writer import blocks
from jaxchop.model.llama import Llama
from jaxchop.model.tree import flatten, unflatten
from jaxchop.progress import track

log = logging.getLogger("jaxchop")
# Largest difference of a logit from the source's: the weights are the same numbers, so it is 0 in practice.
SOURCE_TOLERANCE = 1e-4
# Largest difference between full forward and cached decode, as a share of the largest logit: float32 sums in another
# order over some thousand terms.
CACHE_TOLERANCE = 1e-4
# Opens what an export was made of: (name, revision, content of jaxchop.json) -> the float32 model that its weights must
# equal, None where nothing but the export itself holds it.
LoadReference = Callable[[str, str | None, Mapping[str, Any]], Llama | None]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class CheckReport:
  """What a check found."""

  folder: str
  # What must hold.
  lines: tuple[Line, ...]
  # Which loaders take the folder; a "no" is an answer, not a failure.
  targets: tuple[Line, ...]

  @property
  def ok(self) -> bool:
    """Whether nothing failed; a line that could not be looked at in a folder jaxchop wrote has failed."""
    return all(line.ok is not False for line in self.lines)

  def to_dict(self) -> dict[str, Any]:
    """Returns the report as plain JSON values."""
    return {"ok": self.ok, **dataclasses.asdict(self)}

  @classmethod
  def from_dict(cls, content: dict[str, Any]) -> "CheckReport":
    """Returns the report that `to_dict` told."""
    lines, loaders = (tuple(Line(**line) for line in content[key]) for key in ("lines", "targets"))
    return cls(folder=content["folder"], lines=lines, targets=loaders)


def load_reference(name: str, revision: str | None, about: Mapping[str, Any]) -> Llama:
  """Returns the kept layers of a model that `open_checkpoint` knows, or all of one that has no more than those."""
  checkpoint, keep = open_checkpoint(name, revision=revision), about.get("keep")
  return load_model(checkpoint, keep=None if keep is None or checkpoint.layers == len(keep) else keep)


def check(folder: Path, *, source: str | None = None, reference: LoadReference = load_reference) -> CheckReport:
  """Returns what holds of a Hugging Face folder and who loads it; nothing in it is executed.

  `source` names what its weights must equal, layer for layer; by default jaxchop.json says it. `reference` opens that
  name, for a caller whose models are more than folders, files and hub ids.
  """
  folder = Path(folder)
  if not folder.is_dir():
    raise UsageError(f"{folder} is not a folder; name the folder that holds config.json")
  try:
    facts = read_facts(folder)
  except JaxchopError as error:
    return CheckReport(folder=str(folder), lines=(Line(name="files", ok=False, detail=str(error)),), targets=())
  count = f"{len(facts.tensors)} tensors in {len({stored.file for stored in facts.tensors.values()})} files"
  lines = [Line(name="files", ok=True, detail=count), *lint(facts)]
  try:
    checkpoint = open_checkpoint(str(folder))
    lines += [_content(facts, checkpoint), *_computed(facts, checkpoint, source, reference)]
  except JaxchopError as error:
    lines.append(Line(name="opens", ok=False, detail=str(error)))
  return CheckReport(folder=str(folder), lines=tuple(lines), targets=targets(facts))


def check_in_fresh_process(
  folder: Path, *, source: str | None = None, reference: str = "jaxchop.hub.check:load_reference"
) -> CheckReport:
  """Returns `check` of a new process on the CPU, which knows nothing but the folder.

  `reference` is "module:function" of a `LoadReference`. Its progress goes to standard error.
  """
  command = [sys.executable, "-m", "jaxchop.hub.check", str(folder), "--reference", reference]
  command += ["--source", source] if source is not None else []
  command += [] if log.isEnabledFor(logging.INFO) else ["--quiet"]
  # This process may hold the accelerator, and float32 means float32 on the CPU.
  done = subprocess.run(command, stdout=subprocess.PIPE, env={**os.environ, "JAX_PLATFORMS": "cpu"})
  try:
    answer = json.loads(done.stdout.splitlines()[-1])
  except (ValueError, IndexError) as error:
    raise JaxchopError(f"check of {folder}: its process ended with {done.returncode} and without a report") from error
  if "error" in answer:
    raise (UsageError if done.returncode == UsageError.exit_code else JaxchopError)(answer["error"])
  return CheckReport.from_dict(answer)


def _content(facts: Facts, checkpoint: Checkpoint) -> Line:
  """Reads every tensor once: its values must be finite, and its digest the one of jaxchop.json."""
  name, known = "digests", (facts.manifest or {}).get("tensors", {})
  wrong = [
    *_differing(facts, checkpoint, known),
    *(f"tensor {name} is in {MANIFEST} only" for name in known if name not in checkpoint.tensors),
  ]
  if wrong:
    return Line(name=name, ok=False, detail=wrong[0] + (f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""))
  if not known:
    return Line(name=name, ok=None, detail=f"not compared: there is no {MANIFEST} with digests; all values are finite")
  return Line(name=name, ok=True, detail=f"{len(known)} tensors are what {MANIFEST} says, all values finite")


def _differing(facts: Facts, checkpoint: Checkpoint, known: dict[str, str]) -> Iterator[str]:
  for name, tensor in track(checkpoint.tensors.items(), "reading tensors", len(checkpoint.tensors), "tensors"):
    where, total = f"tensor {name} in {tensor.file}", digest.start(tensor.dtype, tensor.shape)
    finite = True
    for block in (part for rows in row_blocks(tensor) for part in blocks(rows)):
      total.update(block)
      finite = finite and first_not_finite(block, facts.tensors[name].dtype) is None
    if not finite:
      yield f"{where} holds values that are not finite"
    if known and total.hexdigest() != known.get(name):
      yield f"{where} differs from its digest in {MANIFEST}; it was changed after the export: write it again"


def _computed(facts: Facts, checkpoint: Checkpoint, source: str | None, reference: LoadReference) -> Iterator[Line]:
  """Yields what needs the models themselves, one of them in memory at a time."""
  ids_T = probe(checkpoint.architecture)
  model = load_model(checkpoint)
  logits_TV = full_logits(model, ids_T)
  yield _cached(model, ids_T, logits_TV)
  del model
  yield from _against_source(facts, checkpoint, source, reference, ids_T, logits_TV)


def _cached(model: Llama, ids_T: np.ndarray, logits_TV: np.ndarray) -> Line:
  config = model.config
  part_T = cacheable(config, ids_T)
  full_TV = logits_TV if len(part_T) == len(ids_T) else full_logits(model, part_T)
  gap, bound = _largest(cached_logits(model, part_T), full_TV), CACHE_TOLERANCE * max(1.0, float(np.abs(full_TV).max()))
  trained = trained_length(config)
  reach = f"{len(part_T)} positions, {'past' if len(part_T) > trained else 'within'} the trained {trained}"
  detail = f"largest difference from the full forward {gap:.2e} (at most {bound:.1e}) over {reach}"
  return Line(name="cached decode", ok=gap <= bound, detail=detail)


def _against_source(
  facts: Facts,
  checkpoint: Checkpoint,
  source: str | None,
  reference: LoadReference,
  ids_T: np.ndarray,
  logits_TV: np.ndarray,
) -> Iterator[Line]:
  about = facts.manifest or {}
  origin, trained_as = about.get("source", {}), about.get("provenance", {}).get("reference")
  name, revisions = source or trained_as or origin.get("name"), {origin.get("name"): origin.get("revision")}
  if name is None:
    yield Line(
      name="source", ok=None, detail=f"not compared: there is no {MANIFEST} that names a source; name one with --source"
    )
    return
  try:
    model = reference(name, revisions.get(name), about)
    if model is None:
      yield Line(name="source", ok=None, detail="not compared: some weights were fitted on text; see the plan")
    else:
      gap = _largest(full_logits(_rounded(model, checkpoint), ids_T), logits_TV)
      detail = f"largest difference from {name} {gap:.2e} (at most {SOURCE_TOLERANCE:.0e}) over {len(ids_T)} positions"
      yield Line(name="source", ok=gap <= SOURCE_TOLERANCE, detail=detail)
    del model
  except JaxchopError as error:
    yield Line(name="source", ok=False, detail=f"not compared: {error}")
  if origin.get("name"):
    given = origin["name"] if trained_as else name
    yield _carried(facts, given, revisions.get(given))


def _carried(facts: Facts, name: str, revision: str | None) -> Line:
  """Compares tokenizer, chat template and the other files that an export carries unchanged."""
  try:
    given = open_checkpoint(name, revision=revision)
  except JaxchopError as error:
    return Line(name="carried files", ok=None, detail=f"not compared: {error}")
  for file in given.assets:
    if file not in facts.files:
      return Line(name="carried files", ok=False, detail=f"{file} of {name} is missing in the folder")
    if (facts.folder / file).read_bytes() != given.asset(file):
      return Line(name="carried files", ok=False, detail=f"{file} is not the one of {name}")
  return Line(name="carried files", ok=True, detail=f"{len(given.assets)} files are those of {name}, byte for byte")


def _rounded(model: Llama, like: Checkpoint) -> Llama:
  """Returns the model with each parameter rounded to the type the export stores it in, and back in float32."""
  flat = {}
  for name, leaf in flatten(model).items():
    tensor: Tensor | None = like.tensors.get(names.hf_name(name))
    flat[name] = leaf if tensor is None else jnp.asarray(np.asarray(leaf).astype(tensor.dtype).astype(np.float32))
  return unflatten(model, flat)


def _largest(a_TV: np.ndarray, b_TV: np.ndarray) -> float:
  """Returns the largest difference; NaN, which no bound accepts, where shapes differ or a value is not finite."""
  with np.errstate(invalid="ignore"):
    return float(np.abs(a_TV - b_TV).max()) if a_TV.shape == b_TV.shape else float("nan")


def main(arguments: Sequence[str] | None = None) -> int:
  """Runs one check for `check_in_fresh_process`; returns the exit code."""
  parser = argparse.ArgumentParser(prog="python -m jaxchop.hub.check")
  parser.add_argument("folder", type=Path)
  parser.add_argument("--source")
  parser.add_argument("--reference", default="jaxchop.hub.check:load_reference")
  parser.add_argument("--quiet", action="store_true")
  options = parser.parse_args(arguments)
  logging.basicConfig(format="%(message)s", level=logging.WARNING)
  log.setLevel(logging.WARNING if options.quiet else logging.INFO)
  module, _, function = options.reference.partition(":")
  try:
    reference = getattr(importlib.import_module(module), function)
    report = check(options.folder, source=options.source, reference=reference)
  except JaxchopError as error:
    sys.stdout.write(json.dumps({"error": str(error)}) + "\n")
    return error.exit_code
  sys.stdout.write(json.dumps(report.to_dict()) + "\n")
  return 0 if report.ok else 1


if __name__ == "__main__":
  sys.exit(main())
