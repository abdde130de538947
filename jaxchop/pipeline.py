"""`jaxchop run`: the stages of a recipe in order; a stage whose result stands is skipped.

The whole model is held only until the pruned one is cut from it and both are measured; recovery then owns the arrays.
"""

import dataclasses
import functools
import json
import logging
import math
import resource
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from jaxchop import stages
from jaxchop.config import Recipe
from jaxchop.data.loader import Loader
from jaxchop.data.pack import pack
from jaxchop.data.packed import MANIFEST, Packed, open_packed, tokenizer_digest
from jaxchop.data.sources import digest
from jaxchop.data.split import Splits
from jaxchop.data.texts import read_splits
from jaxchop.evaluate.measure import measure
from jaxchop.evaluate.speed import compare_speed
from jaxchop.files import read_json, write_json, write_text
from jaxchop.model.llama import Llama
from jaxchop.prune import plan as plans
from jaxchop.prune.criteria import named
from jaxchop.prune.plan import Plan
from jaxchop.prune.surgery import keep_layers
from jaxchop.recover.loop import Recovered, recover, untrained
from jaxchop.report.page import write_report
from jaxchop.run_folder import RunFolder, standing
from jaxchop.subject import Subject
from jaxchop.versions import machine, versions

log = logging.getLogger("jaxchop")


class Job:
  """A recipe, its run folder, and what several stages share, opened when first needed."""

  def __init__(self, recipe: Recipe):
    self.recipe = recipe
    self.folder = RunFolder(Path(recipe.out))
    self.subject = Subject(recipe.model)

  @functools.cached_property
  def texts(self) -> Splits:
    return read_splits(self.recipe.data)

  @functools.cached_property
  def whole(self) -> Llama:
    return self.subject.load()

  @functools.cached_property
  def small(self) -> Llama:
    """The pruned model before recovery; what the prune leaves as it is, it shares with the whole one."""
    return stages.cut(self.subject, self.whole, self.plan, self.recipe.merging, lambda: self.texts)

  @functools.cached_property
  def plan(self) -> Plan:
    """Which layers stay: plan.json, from scores.json where a criterion chooses."""
    plan = stages.plan(self.subject, self.recipe, self._scores, lambda: self.whole, lambda: self.texts)
    write_json(self.folder.plan, plans.to_json(plan))
    return plan

  def _scores(self, keep: tuple[int, ...]) -> dict[str, Any]:
    """Returns the scores of the model of the layers `keep`: scores.json of all, files of their own of later rounds."""
    recipe, subject = self.recipe, self.subject
    criteria = tuple(dict.fromkeys((*named(recipe.score.criteria), *filter(None, (recipe.prune.criterion,)))))
    later = len(keep) < subject.checkpoint.layers
    out = self.folder.measured / f"scores-of-{len(keep)}-layers.json" if later else self.folder.scores
    found = standing(
      out,
      (subject.identity, keep, digest(self.texts.calibration), recipe.score, criteria),
      lambda: stages.scores(
        subject,
        keep_layers(self.whole, keep),
        self.texts,
        recipe.score,
        criteria,
        recipe.data,
        out,
        keep=keep if later else None,
      ),
    )
    out.with_name(f"{out.name}.partial").unlink(missing_ok=True)
    return found


def run(recipe: Recipe) -> dict[str, Any]:
  """Does the whole job of a recipe in its run folder and returns the content of summary.json.

  Stages whose result stands are skipped; an interrupted recovery goes on from its newest verified checkpoint. Raises
  JaxchopError when another process writes to the folder or a stage fails.
  """
  job = Job(recipe)
  with job.folder.locked():
    text = yaml.safe_dump(dataclasses.asdict(recipe), sort_keys=False)
    write_text(job.folder.recipe, text)
    log.info("%s: %s", job.subject.name, job.plan.words)
    models = {
      "original": measured(job, "original", lambda: job.whole),
      "pruned": measured(job, "pruned", lambda: job.small),
    }
    speed = timed(job)
    spent = exported(job, text)
    models["recovered"] = measured(job, "recovered", lambda: Subject(str(job.folder.export)).load())
    summary = summarised(job, models, speed, spent)
    write_text(job.folder.export / "README.md", stages.card(job.subject, job.plan, summary=summary, recipe=text))
    check = standing(job.folder.measured / "check.json", spent, lambda: stages.check(job.folder.export).to_dict())
    summary |= {"check": for_report(check), "seconds": seconds(job)}
    write_json(job.folder.evaluation, {"models": [{"name": name, **entry} for name, entry in models.items()]})
    write_json(job.folder.summary, summary)
    return summary | {"report": str(write_report(job.folder.path))}


def measured(job: Job, name: str, model: Callable[[], Llama]) -> dict[str, Any]:
  """Returns one model's perplexity and continuations; `model` is called only when they are not known yet."""
  settings, subject = job.recipe.evaluate, job.subject
  key = [name, subject.identity, digest(job.texts.held_out), settings]
  key += [cut_by(job)] if name != "original" else []
  key += [trained(job)] if name == "recovered" else []
  return standing(
    job.folder.measured / f"{name}.json",
    key,
    lambda: measure(
      model(), subject.tokenizer, job.texts.held_out, settings, eos=subject.eos, title=f"Measuring {name}"
    ),
  )


def cut_by(job: Job) -> tuple[Any, ...]:
  """Returns what the pruned weights depend on beside the whole ones."""
  plan, fitted = job.plan, (job.recipe.merging, digest(job.texts.training))
  return plan.keep, *plan.merges, *((plan.repair, *fitted) if plan.repair else ())


def trained(job: Job) -> tuple[Any, ...]:
  """Returns what the recovered weights depend on beside the pruned model."""
  return job.recipe.recover, digest(job.texts.training), job.recipe.export


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
  """Returns what recovery took, after writing the recovered model to the run's export folder."""

  def make() -> dict[str, Any]:
    again = recovered(job) if job.recipe.recover.steps else untrained(job.small)
    subject = Subject(str(job.folder.path))
    stages.write(subject, again.model, job.plan, job.folder.export, job.recipe.export, overwrite=True, recipe=recipe)
    return spent_on(again)

  key = job.subject.identity, cut_by(job), trained(job)
  return standing(job.folder.measured / "recovery.json", key, make, product=job.folder.export / "config.json")


def recovered(job: Job) -> Recovered:
  """Returns the pruned model after continued pretraining; the whole one is let go first."""
  settings, subject = job.recipe.recover, job.subject
  packed = training_data(job)
  start = job.small
  del job.small, job.whole
  batches = Loader(packed, batch_size=settings.batch_size, seed=settings.seed)
  meta = {"source": subject.identity, "cut": json.loads(json.dumps(cut_by(job), default=str)), "data": packed.digest}
  return recover(start, batches, settings, job.folder.path, meta=meta)


def training_data(job: Job) -> Packed:
  """Returns the training text as token records, packed once and checked each time."""
  tokenizer, length, out = job.subject.tokenizer, job.recipe.recover.seq_len, job.folder.data

  def make() -> dict[str, Any]:
    return {"digest": pack(job.texts.training, tokenizer, seq_len=length, out=out, eos=job.subject.eos[0]).digest}

  key = digest(job.texts.training), tokenizer_digest(tokenizer), length
  standing(job.folder.measured / "data.json", key, make, product=out / MANIFEST)
  return open_packed(out, tokenizer)


def spent_on(again: Recovered) -> dict[str, Any]:
  """Returns a recovery's figures without its weights."""
  return {field.name: getattr(again, field.name) for field in dataclasses.fields(again) if field.name != "model"}


def summarised(
  job: Job, models: Mapping[str, Mapping[str, Any]], speed: Mapping[str, Any], spent: Mapping[str, Any]
) -> dict[str, Any]:
  """Returns summary.json but for what the export adds: the three models side by side, what was spent, on what."""
  sizes, kept = stages.sizes(job.subject, job.recipe.export), len(job.plan.keep)
  layers = {"original": sizes.layers, "pruned": kept, "recovered": kept}
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
      "prefill_tokens_per_second": rates["prefill_tokens_per_second"],
      "decode_tokens_per_second": rates["decode_tokens_per_second"],
      "speed_protocol": rates["protocol"] + "; recovered: the pruned model's, whose shapes are the same",
    }
  return rows | {
    "gap_closed": gap_closed(*(rows[name]["perplexity"] for name in ("original", "pruned", "recovered"))),
    "tokens": spent["tokens"],
    "recovery": dict(spent),
    "export": str(job.folder.export),
    "peak_memory_bytes": peak_memory(),
    "versions": versions(),
    "machine": machine(),
  }


def seconds(job: Job) -> dict[str, float]:
  """Returns the seconds of each stage, whenever it ran; the recovery's includes its compilation."""
  scored = {"score": job.folder.scores} if job.recipe.prune.criterion else {}
  files = scored | {f"measure {name}": job.folder.measured / f"{name}.json" for name in ("original", "pruned")}
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


def peak_memory() -> int:
  """Returns the most host memory this process has held, in bytes."""
  status = Path("/proc/self/status")
  if status.exists():
    # Linux hands `ru_maxrss` down from the process that started this one.
    return 1024 * int(next(line for line in status.read_text().splitlines() if line.startswith("VmHWM")).split()[1])
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
