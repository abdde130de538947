"""What each sub-command does: opens what it names, calls one room, returns an object that JSON can hold."""

import dataclasses
import json
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jaxchop import stages
from jaxchop.compare import compare as compare_ways
from jaxchop.config import BuildConfig, EvaluateConfig, PruneConfig, Recipe, ScoreConfig
from jaxchop.data.pack import pack
from jaxchop.data.packed import open_packed
from jaxchop.data.remote import is_remote, send, staging
from jaxchop.data.sources import Corpus
from jaxchop.data.texts import Several, is_cache, local_cache, read_splits
from jaxchop.data.written import Written, is_written
from jaxchop.describe import describe
from jaxchop.errors import UsageError
from jaxchop.files import local_path, write_json
from jaxchop.forecast import forecast as foretold
from jaxchop.hub.export import export_model
from jaxchop.hub.rewrite import prune_checkpoint
from jaxchop.job import Job
from jaxchop.measured import measured
from jaxchop.model.generate import Sampling
from jaxchop.model.generate import generate as continue_prompts
from jaxchop.parallel.channel import Channel
from jaxchop.parallel.hosts import joined, require_one
from jaxchop.pipeline import run as run_recipe
from jaxchop.pipeline import spent_on
from jaxchop.preflight.command import Wishes
from jaxchop.preflight.command import preflight as foreseen
from jaxchop.prune import plan as plans
from jaxchop.prune.agreement import agreement, usual_count, verdicts
from jaxchop.prune.criteria import named
from jaxchop.prune.plan import Plan, read_plan
from jaxchop.prune.scores_file import from_json, read_scores
from jaxchop.prune.surgery import keep_layers
from jaxchop.recipes import read_recipe
from jaxchop.report.page import write_report
from jaxchop.run_folder import RunFolder
from jaxchop.speeds import drafting, speeds
from jaxchop.subject import Subject
from jaxchop.training import RecoverConfig
from jaxchop.versions import machine


def run(options: Any) -> dict[str, Any] | None:
  recipe = _settings(Recipe, options)
  with joined(_told(recipe), recipe.recover.mesh.wait) as hosts:
    return _spoken(run_recipe(recipe, hosts), hosts)


def inspect(options: Any) -> dict[str, Any]:
  return describe(Subject(options.model))


def score(options: Any) -> dict[str, Any]:
  out = local_path(options.out)
  subject, texts = Subject(options.model), read_splits(options.data)
  settings = _settings(ScoreConfig, options)
  found = stages.scores(subject, subject.load(), texts, settings, named(settings.criteria), options.data, out)
  write_json(out, found)
  scores, layers = from_json(found), len(subject.keep)
  count = options.count or usual_count(layers)
  chosen = verdicts(scores, range(layers), count)
  return found | {
    "count": count,
    "chosen": {name: dataclasses.asdict(verdict) for name, verdict in chosen.items()},
    "agreement": agreement({name: verdict.drop for name, verdict in chosen.items()}),
    "compare": options.compare,
  }


def prune(options: Any) -> dict[str, Any]:
  out = local_path(options.out) if options.out else None
  subject = Subject(options.model)
  plan = read_or_make_plan(subject, options)
  content = plans.to_json(plan)
  if options.plan_only:
    if out:
      write_json(out, content)
    return content
  if not out:
    raise UsageError("prune: name the folder to write with -o, or ask for --plan-only")
  common = {
    "dtype": options.export.dtype,
    "max_shard_size": options.export.max_shard_size,
    "overwrite": options.overwrite,
    "readme": stages.card(subject, plan),
    "provenance": {"plan": content},
  }
  if plan.merges or plan.repair:
    model = stages.cut(subject, subject.load(), plan, options.merging, lambda: read_splits(options.data))
    exported = export_model(model, subject.checkpoint, out, keep=plan.keep, **common)
  else:
    exported = prune_checkpoint(subject.checkpoint, plan.keep, out, **common)
  return content | {"folder": str(exported.folder), "parameters": exported.parameters, "bytes": exported.bytes}


def read_or_make_plan(subject: Subject, options: Any) -> Plan:
  """Returns the plan that the options of `prune` name or describe; a criterion without scores scores now."""
  settings = _settings(PruneConfig, options)
  for name in ("recover_between", "fade"):
    if getattr(settings, name):
      raise UsageError(f"prune.{name}: `prune` trains nothing; put it in a recipe for `jaxchop run`")
  if options.plan:
    plan = plans.read_plan(Path(options.plan))
    if plan.layers != subject.checkpoint.layers:
      raise UsageError(
        f"{options.plan}: made for a model of {plan.layers} layers, {subject.name} has {subject.checkpoint.layers}"
      )
    return plan

  def found(keep: tuple[int, ...]) -> Mapping[str, Any]:
    if options.scores:
      if len(keep) < subject.checkpoint.layers:
        raise UsageError(f"prune.rounds: {options.scores} holds one scoring; leave it out, or ask for one round")
      return read_scores(Path(options.scores))
    criteria, texts = (settings.criterion,), read_splits(options.data)
    with tempfile.TemporaryDirectory() as folder:
      model = keep_layers(subject.load(), keep)
      return stages.scores(
        subject, model, texts, options.score, criteria, options.data, Path(folder) / "scores.json", keep=keep
      )

  recipe = Recipe(
    out="", model=options.model, data=options.data, prune=settings, merging=options.merging, export=options.export
  )

  def search(count: int | None) -> Plan:
    return stages.merged_plan(subject, recipe, subject.load(), read_splits(options.data), count)

  return stages.plan(subject, recipe, found, lambda: stages.layer_share(subject.load()), search)


def recover(options: Any) -> dict[str, Any] | None:
  layers = Subject(options.model).checkpoint.layers
  settings = _settings(RecoverConfig, options)
  keep_all = PruneConfig(keep=f"0:{layers}")
  recipe = Recipe(
    out=options.out,
    model=options.model,
    data=options.data,
    prune=keep_all,
    recover=settings,
    evaluate=options.evaluate,
  )
  with joined(_told(recipe), settings.mesh.wait) as hosts:
    job = Job(recipe, hosts)
    with job.locked():
      return _spoken(spent_on(job.recovered()), hosts)


def evaluate(options: Any) -> dict[str, Any]:
  settings, texts = _settings(EvaluateConfig, options), read_splits(options.data)
  return {"models": [measured(name, texts, settings) for name in options.models], "machine": machine()}


def compare(options: Any) -> dict[str, Any]:
  files = [Path(name) for name in options.recipes]
  ways = {file.stem: read_recipe([*map(Path, options.base), file], options.out) for file in files}
  if len(ways) < len(files):
    raise UsageError("two recipes have the same file name, which names the way; rename one")
  require_one("compare", max(recipe.recover.mesh.wait for recipe in ways.values()))
  return compare_ways(
    ways,
    local_path(options.out),
    tokens=options.tokens,
    budgets=("tokens", "flops") if options.equal == "both" else (options.equal,),
    seeds=range(options.seeds),
  )


def forecast(options: Any) -> dict[str, Any]:
  path = Path(options.run)
  run = RunFolder(path) if path.is_dir() else None
  recipe = read_recipe([run.recipe if run else path])
  require_one("forecast", recipe.recover.mesh.wait)
  return foretold(
    recipe,
    local_path(options.out or f"{recipe.out}/forecast"),
    plan=read_plan(run.plan) if run else None,
    tokens=options.tokens,
    target=options.target,
    gain=options.gain,
    chip_flops=options.chip_tflops and options.chip_tflops * 1e12,
    seed=options.seed,
  )


def preflight(options: Any) -> dict[str, Any]:
  return foreseen(
    _settings(Recipe, options),
    options.topology,
    options.slices,
    plan=read_plan(Path(options.plan)) if options.plan else None,
    layers=options.layers,
    wishes=Wishes(
      price=options.price,
      search=options.search,
      sweep=options.sweep_layers,
      programs=tuple(options.programs),
      save=local_path(options.save).absolute() if options.save else None,
    ),
  )


def export(options: Any) -> dict[str, Any]:
  subject, out = Subject(options.run), local_path(options.out)
  if subject.plan is None:
    raise UsageError(f"{options.run} is no run folder with a plan.json; `jaxchop prune` writes folders from models")
  if options.adapter:
    return stages.write_adapters(subject, options.adapter, out, overwrite=options.overwrite)
  exported = stages.write(subject, subject.load(), subject.plan, out, options, overwrite=options.overwrite)
  return {"folder": str(exported.folder), "check": stages.check(exported.folder).to_dict()}


def check(options: Any) -> dict[str, Any]:
  return stages.check(Path(options.folder), options.source).to_dict()


def report(options: Any) -> dict[str, Any]:
  return {"report": str(write_report(Path(options.run)))}


def data_build(options: Any) -> dict[str, Any]:
  settings, subject = _settings(BuildConfig, options), Subject(options.model)
  if not subject.eos:
    raise UsageError(f"{options.model}: names no EOS token to end documents with; set eos_token_id in its config.json")
  start, bucket = time.monotonic(), is_remote(options.out)
  if bucket and is_cache(options.out) and not options.overwrite:
    raise UsageError(f"{options.out}: holds a finished cache; choose another folder, or say overwrite to replace it")
  written = [Written(spec, subject.tokenizer, subject.eos[0]) for spec in options.sources if is_written(spec)]
  if written and len(written) < len(options.sources):
    raise UsageError("a cache holds text or conversations, not both; build two, and mix them by data.corpora")
  packed = pack(
    Several(written) if written else Corpus(options.sources, text_field=settings.text_field),
    subject.tokenizer,
    seq_len=settings.seq_len,
    out=staging(options.out) if bucket else local_path(options.out),
    eos=subject.eos[0],
    segments=settings.segments,
    whole=bool(written),
    workers=settings.workers or os.cpu_count() or 1,
    # Where a cache for a bucket is built, a finished one is left only by a process that could not send it.
    overwrite=options.overwrite or bucket,
  )
  if bucket:
    send(packed.path, options.out)
  return packed.describe() | {"folder": options.out, "seconds": time.monotonic() - start}


def data_inspect(options: Any) -> dict[str, Any]:
  return open_packed(local_cache(options.folder)).describe() | {"ok": True}


def speed(options: Any) -> dict[str, Any]:
  lengths = {name: getattr(options, name) for name in ("batch", "prompt_tokens", "new_tokens")}
  if not (options.draft or options.target):
    if not options.models:
      raise UsageError("speed: name the models, or a drafter by --draft and its target by --target")
    counts = {"repeats": options.repeats, "warm_up": options.warm_up}
    return speeds(options.models, protocol=options.protocol, **lengths, **counts)
  if not (options.draft and options.target):
    raise UsageError("speed: a drafter needs both --draft and --target")
  alone = {"models": options.models, "--protocol": options.protocol, "--batch": options.batch}
  if given := [name for name, value in {**alone, "--warm_up": options.warm_up}.items() if value]:
    raise UsageError(f"speed: {', '.join(given)} and --draft do not go together; a drafter writes one text at a time")
  if more := [name for name in ("prompt_tokens", "new_tokens") if len(lengths[name] or ()) > 1]:
    raise UsageError(f"speed: --{more[0]} takes one number beside --draft")
  return drafting(
    options.draft,
    options.target,
    options.data,
    drafted=options.drafted,
    prompts=options.prompts,
    prompt_tokens=(lengths["prompt_tokens"] or [128])[0],
    new_tokens=(lengths["new_tokens"] or [64])[0],
    repeats=options.repeats or 1,
  )


def generate(options: Any) -> dict[str, Any]:
  subject = Subject(options.model)
  prompts = [_prompt_ids(subject, text, options.chat) for text in options.prompt]
  sampling = Sampling(temperature=options.temperature, top_k=options.top_k, top_p=options.top_p)
  new = continue_prompts(
    subject.load(),
    prompts,
    max_new_tokens=options.max_new_tokens,
    eos=subject.eos,
    sampling=sampling,
    seed=options.seed,
  )
  texts = [subject.tokenizer.decode(ids, skip_special_tokens=True) for ids in new]
  pairs = zip(options.prompt, texts, new, strict=True)
  return {"continuations": [{"prompt": p, "continuation": text, "tokens": ids} for p, text, ids in pairs]}


def _prompt_ids(subject: Subject, text: str, chat: bool) -> list[int]:
  if not chat:
    return subject.tokenizer.encode(text)
  if not subject.tokenizer.chat_template:
    raise UsageError(f"{subject.name} has no chat template; leave out --chat")
  messages = [{"role": "user", "content": text}]
  rendered = subject.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
  return subject.tokenizer.encode(str(rendered), add_special_tokens=False)


def _told(recipe: Recipe) -> dict[str, Any]:
  """Returns the settings of a recipe by their dotted names, all of which the processes of a run must be given alike."""

  def flat(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
      for key, below in value.items():
        yield from flat(f"{name}.{key}" if name else str(key), below)
    else:
      yield name, value

  return dict(flat("", json.loads(json.dumps(dataclasses.asdict(recipe)))))


def _spoken(result: dict[str, Any], hosts: Channel) -> dict[str, Any] | None:
  """Returns what is printed: of several processes the first one speaks."""
  return result if hosts.index == 0 else None


def _settings(kind: type, options: Any) -> Any:
  """Returns the settings of a dataclass whose fields stand among a command's own options."""
  return kind(**{field.name: getattr(options, field.name) for field in dataclasses.fields(kind)})
