"""What a run folder says, as frozen dataclasses: what is not there is None or empty, what is broken an error."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxchop import wording
from jaxchop.errors import JaxchopError, UsageError
from jaxchop.files import read_json
from jaxchop.report.along import Course, read_courses
from jaxchop.report.fields import Fields
from jaxchop.report.goodput import Goodput, read_goodput
from jaxchop.report.scored import Occasion, Score, read_occasion, read_scores

MODELS = ("original", "pruned", "recovered")


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
  """Which layers stay and which go."""

  source: str
  revision: str
  layers: int
  keep: tuple[int, ...]
  drop: tuple[int, ...]
  criterion: str
  definition: str
  # The same in words: "removes layers 21..28, keeps 0..20 and 29..31".
  words: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
  """One optimizer step of the recovery."""

  step: int
  # Nats per token.
  loss: float
  tokens_per_second: float | None
  # Share of the peak of all devices.
  mfu: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
  """How one model goes on from a prompt."""

  prompt: str
  continuation: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
  """One model of the run with what was measured of it; None is not measured."""

  # original, pruned or recovered.
  name: str
  layers: int | None = None
  parameters: int | None = None
  bytes: int | None = None
  # By protocol, in words.
  perplexity: tuple[tuple[str, float], ...] = ()
  bits_per_byte: float | None = None
  # Share of the capability probe's items that it solves, and how they were asked, in words.
  capability: float | None = None
  capability_protocol: str = ""
  # What further suites say: (name, value with its error in words, protocol).
  figures: tuple[tuple[str, str, str], ...] = ()
  # Tokens a second.
  prefill: float | None = None
  decode: float | None = None
  speed_protocol: str = ""
  samples: tuple[Sample, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
  """Whether one loader takes the export, and why not."""

  name: str
  # None where it could not be told.
  loads: bool | None
  why: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
  """What the check of the export found."""

  ok: bool
  targets: tuple[Target, ...]
  lines: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
  """Everything a run folder says."""

  name: str
  # recipe.yaml as it stands.
  recipe: str = ""
  scores: tuple[Score, ...] = ()
  # Of which model and on which text they are.
  scored: Occasion = Occasion()  # noqa: RUF009 - frozen
  plan: Plan | None = None
  steps: tuple[Step, ...] = ()
  # What was measured between them.
  courses: tuple[Course, ...] = ()
  models: tuple[Measured, ...] = ()
  # Tokens the recovery trained on.
  tokens: int | None = None
  # Where its time went, and the peak that its MFU is a share of, in words.
  goodput: Goodput | None = None
  peak: str = ""
  # Stage and its seconds, in order.
  seconds: tuple[tuple[str, float], ...] = ()
  # Share of the gap in log perplexity that recovery closed.
  gap_closed: float | None = None
  export: str = ""
  check: Check | None = None
  peak_memory_bytes: int | None = None
  versions: tuple[tuple[str, str], ...] = ()
  machine: str = ""

  def model(self, name: str) -> Measured | None:
    """The original, pruned or recovered model, None where nothing is known of it."""
    return next((model for model in self.models if model.name == name), None)


def read_run(folder: Path) -> Run:
  """The run folder's files read and checked; raises UsageError if it holds none, JaxchopError naming a bad one."""
  if not folder.is_dir():
    raise UsageError(f"{folder}: no such run folder; name a folder that jaxchop run has written")
  summary, evaluated, scores, plan = (
    _read_object(folder / f"{name}.json") for name in ("summary", "eval", "scores", "plan")
  )
  steps, recipe = read_steps(folder / "metrics.jsonl"), _read_text(folder / "recipe.yaml")
  if not (summary or evaluated or scores or plan or steps or recipe):
    raise UsageError(f"{folder}: holds no results of a run; name a folder that jaxchop run has written")
  run = Run(
    name=folder.resolve().name,
    recipe=recipe,
    scores=read_scores(Fields("scores.json", scores)),
    scored=read_occasion(Fields("scores.json", scores)),
    plan=read_plan(Fields("plan.json", plan)) if plan else None,
    steps=steps,
    courses=read_courses(folder / "journal.jsonl"),
    models=read_models(summary or {}, evaluated),
    **_read_summary(Fields("summary.json", summary)),
  )
  _same_layers(run)
  return run


def _same_layers(run: Run) -> None:
  for score in run.scores:
    found = len(score.per_layer)
    if run.plan and found != run.plan.layers:
      raise JaxchopError(
        f"scores.json: {score.name} has {found} layers, plan.json has {run.plan.layers}; "
        "the two are of different models, score and plan again"
      )


def read_plan(file: Fields) -> Plan:
  """A plan.json; raises JaxchopError where keep and drop are not the model's layers, each once."""
  source, criterion = file.child("source"), file.child("criterion")
  keep, drop = file.integers("keep"), file.integers("drop")
  layers = file.integer("layers")
  if layers is None or len(keep) + len(drop) != layers or sorted(keep + drop) != list(range(layers)):
    raise JaxchopError("plan.json: keep and drop are not the model's layers, each once; plan again")
  return Plan(
    source=source.text("name"),
    revision=source.text("revision"),
    layers=layers,
    keep=keep,
    drop=drop,
    criterion=criterion.text("name"),
    definition=criterion.text("definition"),
    words=file.text("words"),
  )


def read_steps(path: Path) -> tuple[Step, ...]:
  """The steps of a metrics.jsonl in order; of a step that a resumed run did again, the later line."""
  steps: dict[int, Step] = {}
  lines = _read_text(path).splitlines()
  for number, line in enumerate(lines, start=1):
    try:
      values = json.loads(line)
    except ValueError:
      if number == len(lines):
        # A killed process leaves half a last line.
        break
      raise JaxchopError(f"{path}: line {number} is not JSON; remove the line or run the recovery again") from None
    fields = Fields(f"metrics.jsonl line {number}", values)
    step, loss = fields.integer("step"), fields.number("loss")
    if step is not None and loss is not None:
      rate, mfu = fields.number("tokens_per_second"), fields.number("mfu")
      steps[step] = Step(step=step, loss=loss, tokens_per_second=rate, mfu=mfu)
  return tuple(steps[step] for step in sorted(steps))


def read_models(summary: Mapping[str, Any], evaluated: Mapping[str, Any] | None = None) -> tuple[Measured, ...]:
  """Original, pruned and recovered as summary.json and eval.json tell of them; those not named are left out."""
  file, tests = Fields("summary.json", summary), Fields("eval.json", evaluated)
  tested = {one.text("name"): one for one in tests.items("models")}
  names = [name for name in MODELS if name in summary or name in tested]
  return tuple(_model(name, file.child(name), tested.get(name, Fields("eval.json", {}))) for name in names)


def _model(name: str, summary: Fields, tested: Fields) -> Measured:
  perplexity = {}
  value, protocol = summary.number("perplexity"), summary.text("protocol")
  # A perplexity without its protocol says nothing, so none is shown.
  if value is not None and protocol:
    perplexity[protocol] = value
  for protocol, value in tested.pairs("perplexity"):
    perplexity.setdefault(protocol, value)
  bits = summary.number("bits_per_byte")
  return Measured(
    name=name,
    layers=summary.integer("layers"),
    parameters=summary.integer("parameters"),
    bytes=summary.integer("bytes"),
    perplexity=tuple(perplexity.items()),
    bits_per_byte=tested.number("bits_per_byte") if bits is None else bits,
    capability=summary.number("capability"),
    capability_protocol=summary.text("capability_protocol"),
    figures=tuple(
      (name, wording.figure(one.number("value") or 0.0, one.number("error"), one.text("unit")), one.text("protocol"))
      for name, one in summary.children("figures")
    ),
    prefill=summary.number("prefill_tokens_per_second"),
    # 0 where no token was to be decoded.
    decode=summary.number("decode_tokens_per_second") or None,
    speed_protocol=summary.text("speed_protocol"),
    samples=tuple(
      Sample(prompt=one.text("prompt"), continuation=one.text("continuation")) for one in tested.items("samples")
    ),
  )


def _read_summary(file: Fields) -> dict[str, Any]:
  check, recovery = file.child("check"), file.child("recovery")
  return {
    "tokens": file.integer("tokens"),
    "goodput": read_goodput(recovery),
    "peak": recovery.child("plan").text("peak"),
    "seconds": file.pairs("seconds"),
    "gap_closed": file.number("gap_closed"),
    "export": file.text("export"),
    "check": _read_check(check) if check.values else None,
    "peak_memory_bytes": file.integer("peak_memory_bytes"),
    "versions": tuple((name, str(version)) for name, version in file.child("versions").values.items()),
    "machine": file.text("machine"),
  }


def _read_check(check: Fields) -> Check:
  targets = check.children("targets")
  return Check(
    ok=bool(check.flag("ok")),
    targets=tuple(Target(name=name, loads=one.flag("loads"), why=one.text("why")) for name, one in targets),
    lines=check.texts("lines"),
  )


def _read_text(path: Path) -> str:
  if not path.exists():
    return ""
  try:
    return path.read_text(encoding="utf-8")
  except UnicodeDecodeError:
    raise JaxchopError(f"{path}: is not UTF-8 text; write it again with jaxchop") from None


def _read_object(path: Path) -> dict[str, Any] | None:
  if not path.exists():
    return None
  value = read_json(path)
  if not isinstance(value, dict):
    raise JaxchopError(f"{path}: holds a {type(value).__name__}, expected one object; write it again with jaxchop")
  return value
