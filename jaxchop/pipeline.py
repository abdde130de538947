"""`jaxchop run`: the stages of a recipe in order; a stage whose result stands is skipped.

The whole model is held only until the pruned one is cut from it and both are measured; recovery then owns the arrays.
"""

import dataclasses
import logging
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import yaml

from jaxchop import retrain, stages
from jaxchop.config import Recipe
from jaxchop.data.sources import digest
from jaxchop.evaluate.measure import measure
from jaxchop.evaluate.speed import compare_speed
from jaxchop.files import read_json, write_json, write_text
from jaxchop.heap import peak_bytes
from jaxchop.hub.load import open_checkpoint
from jaxchop.job import Job
from jaxchop.model.llama import Llama
from jaxchop.parallel.channel import ALONE, Channel
from jaxchop.recover.outcome import Recovered, untrained
from jaxchop.report.page import write_report
from jaxchop.run_folder import standing, stood
from jaxchop.subject import Subject
from jaxchop.versions import machine, versions

log = logging.getLogger("jaxchop")


def run(recipe: Recipe, hosts: Channel = ALONE) -> dict[str, Any]:
  """Does the whole job of a recipe in its run folder and returns the content of summary.json.

  Stages whose result stands are skipped; an interrupted recovery goes on from its newest verified checkpoint. Where
  `hosts` joins several processes, all call this; but for the recovery, process 0 works and the others take its results.
  Raises JaxchopError when another process writes to the folder or a stage fails.
  """
  job = Job(recipe, hosts)
  job.texts.require("held_out")
  with job.locked():
    text = yaml.safe_dump(dataclasses.asdict(recipe), sort_keys=False)
    hosts.first("recipe", lambda: write_text(job.folder.recipe, text))
    log.info("%s: %s", job.subject.name, job.plan.words)
    retrain.check(job)
    if job.trained_before:
      _ = job.small
    models = hosts.first("measured before", lambda: measured_before(job))
    speed = hosts.first("speed", lambda: timed(job))
    spent = exported(job, text)
    return hosts.first("summary", lambda: concluded(job, models, speed, spent, text))


def measured_before(job: Job) -> dict[str, Any]:
  """Returns what was measured of the models before recovery."""
  models = {"original": lambda: job.whole, "pruned": lambda: job.small}
  return {name: measured(job, name, model) for name, model in models.items()}


def concluded(
  job: Job, models: dict[str, Any], speed: Mapping[str, Any], spent: Mapping[str, Any], recipe: str
) -> dict[str, Any]:
  """Returns the summary of a run after measuring and checking its export and writing its report."""
  models |= {"recovered": measured(job, "recovered", lambda: Subject(str(job.folder.export)).load())}
  summary = summarised(job, models, speed, spent)
  write_text(job.folder.export / "README.md", stages.card(job.subject, job.plan, summary=summary, recipe=recipe))
  check = standing(job.folder.measured / "check.json", spent, lambda: stages.check(job.folder.export).to_dict())
  summary |= {"check": for_report(check), "seconds": seconds(job)}
  write_json(job.folder.evaluation, {"models": [{"name": name, **entry} for name, entry in models.items()]})
  write_json(job.folder.summary, summary)
  return summary | {"report": str(write_report(job.folder.path))}


def measured(job: Job, name: str, model: Callable[[], Llama]) -> dict[str, Any]:
  """Returns one model's perplexity and continuations; `model` is called only when they are not known yet."""
  settings, subject = job.recipe.evaluate, job.subject
  key = [name, subject.identity, digest(job.texts.held_out), settings]
  key += [job.cut_by] if name != "original" else []
  key += [trained(job)] if name == "recovered" else []
  return standing(
    job.folder.measured / f"{name}.json",
    key,
    lambda: measure(
      model(), subject.tokenizer, job.texts.held_out, settings, eos=subject.eos, title=f"Measuring {name}"
    ),
  )


def trained(job: Job) -> tuple[Any, ...]:
  """Returns what the recovered weights depend on beside the pruned model."""
  return job.recipe.recover, job.trained_on, job.recipe.export


def timed(job: Job) -> dict[str, Any]:
  """Returns prefill and decode speed of the whole and the pruned model, measured in turn; recovery changes neither."""
  settings = job.recipe.evaluate

  def make() -> dict[str, Any]:
    models = {"original": job.whole, "pruned": job.small}
    found = compare_speed(models, prompt_tokens=settings.prompt_tokens, new_tokens=settings.new_tokens)
    return {name: dataclasses.asdict(speed) for name, speed in found.items()}

  key = job.subject.identity, job.plan.keep, settings.prompt_tokens, settings.new_tokens, machine()
  return standing(job.folder.measured / "speed.json", key, make)


def exported(job: Job, recipe: str) -> dict[str, Any]:
  """Returns what recovery took, after writing the recovered model to the run's export folder: the work of all."""
  path, product = job.folder.measured / "recovery.json", job.folder.export / "config.json"
  key = job.subject.identity, job.cut_by, trained(job)
  if found := job.hosts.first("recovery stands", lambda: stood(path, key, product=product)):
    return found
  start = time.monotonic()
  again = job.recovered() if job.recipe.recover.steps else untrained(job.start())
  subject = Subject(str(job.folder.path))
  stages.write(subject, again.model, job.plan, job.folder.export, job.recipe.export, overwrite=True, recipe=recipe)
  return job.hosts.first("recovery", lambda: standing(path, key, lambda: spent_on(again), since=start))


def spent_on(again: Recovered) -> dict[str, Any]:
  """Returns a recovery's figures without its weights."""
  return {field.name: getattr(again, field.name) for field in dataclasses.fields(again) if field.name != "model"}


def summarised(
  job: Job, models: Mapping[str, Mapping[str, Any]], speed: Mapping[str, Any], spent: Mapping[str, Any]
) -> dict[str, Any]:
  """Returns summary.json but for what the export adds: the three models side by side, what was spent, on what."""
  sizes, kept = stages.sizes(job.subject, job.recipe.export), len(job.plan.keep)
  layers = {"original": sizes.layers, "pruned": kept, "recovered": kept}
  written = open_checkpoint(str(job.folder.export))
  rows: dict[str, Any] = {}
  for name, entry in models.items():
    ((protocol, perplexity),) = entry["perplexity"].items()
    # Recovery changes the weights, not the work: the pruned model's speed is the recovered one's.
    rates = speed["original" if name == "original" else "pruned"]
    rows[name] = {
      "layers": layers[name],
      "parameters": sizes.parameters(layers[name]),
      "bytes": sizes.parameters(layers[name]) * sizes.parameter_bytes,
      "perplexity": perplexity,
      "protocol": protocol,
      "bits_per_byte": entry["bits_per_byte"],
      **({"capability": entry["capability"]["score"]} if "capability" in entry else {}),
      **({"capability_protocol": entry["capability"]["protocol"]} if "capability" in entry else {}),
      "prefill_tokens_per_second": rates["prefill_tokens_per_second"],
      "decode_tokens_per_second": rates["decode_tokens_per_second"],
      "speed_protocol": rates["protocol"] + "; recovered: the pruned model's, whose shapes are the same",
    }
  # A head that training untied is a parameter more.
  tensors = written.tensors.values()
  rows["recovered"] |= {
    "parameters": sum(tensor.bytes // tensor.dtype.itemsize for tensor in tensors),
    "bytes": sum(tensor.bytes for tensor in tensors),
  }
  return rows | {
    "untied": job.subject.checkpoint.architecture.tied and not written.architecture.tied,
    "gap_closed": gap_closed(*(row["perplexity"] for row in rows.values())) if spent["steps"] else None,
    "tokens": spent["tokens"] + retrain.tokens_before(job),
    "recovery": dict(spent),
    "export": str(job.folder.export),
    "peak_memory_bytes": peak_bytes(),
    "versions": versions(),
    "machine": machine(),
  }


def seconds(job: Job) -> dict[str, float]:
  """Returns the seconds of each stage, whenever it ran; the recovery's includes its compilation."""
  files = {"score": job.folder.scores} if job.recipe.prune.criterion else {}
  files |= {"search merges": job.folder.measured / "merged.json"} if job.plan.merges else {}
  files |= {f"measure {name}": job.folder.measured / f"{name}.json" for name in ("original", "pruned")}
  files |= {"speed": job.folder.measured / "speed.json", "recover and export": job.folder.measured / "recovery.json"}
  files |= {"measure recovered": job.folder.measured / "recovered.json", "check": job.folder.measured / "check.json"}
  return {stage: read_json(file)["seconds"] for stage, file in files.items()}


def for_report(check: Mapping[str, Any]) -> dict[str, Any]:
  """Returns a check as summary.json holds it."""
  return {
    "ok": check["ok"],
    "lines": [f"{line['name']}: {line['detail']}" for line in check["lines"]],
    "targets": {line["name"]: {"loads": line["ok"], "why": line["detail"]} for line in check["targets"]},
  }


def gap_closed(original: float, pruned: float, recovered: float) -> float | None:
  """Returns the share of the gap in log perplexity that recovery closed; None where pruning opened none."""
  gap = math.log(pruned / original)
  return math.log(pruned / recovered) / gap if gap > 0 else None
