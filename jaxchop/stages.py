"""What the sub-commands and the pipeline do with an opened model: score it, plan, measure it, write it."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxchop.config import DataConfig, ExportConfig, MergingConfig, Recipe, ScoreConfig
from jaxchop.data.sources import digest
from jaxchop.data.texts import Texts
from jaxchop.data.windows import first_sentences, first_windows
from jaxchop.errors import UsageError
from jaxchop.evaluate.speed import compare_speed
from jaxchop.files import write_json
from jaxchop.hub.builtin import BUILTIN, MODEL_CARD
from jaxchop.hub.check import CheckReport, check_in_fresh_process
from jaxchop.hub.export import Exported, config_dtype, export_model
from jaxchop.hub.load import open_checkpoint
from jaxchop.hub.names import EMBEDDING, layer_of
from jaxchop.hub.peft import write_adapter
from jaxchop.layers import without
from jaxchop.model.llama import Llama
from jaxchop.prune import scores_file
from jaxchop.prune.cut import MERGES, merged, repair_of
from jaxchop.prune.cut import cut as cut_model
from jaxchop.prune.journal import Journal
from jaxchop.prune.plan import Plan, to_json
from jaxchop.prune.score import Score, Scores, score
from jaxchop.prune.select import Sizes, choose, how_many, targets
from jaxchop.prune.surgery import keep_layers
from jaxchop.recover.trainable import ADAPTERS, settings_of
from jaxchop.report.card import model_card
from jaxchop.subject import Subject


def scores(
  subject: Subject,
  model: Llama,
  texts: Texts,
  config: ScoreConfig,
  criteria: Sequence[str],
  data: DataConfig,
  out: Path,
  *,
  keep: tuple[int, ...] | None = None,
  trained: object = (),
) -> dict[str, Any]:
  """Returns the content of scores.json: every layer of `model` by each criterion on the calibration text.

  What stands in `out` and would come out the same is taken from there; losses measured so far lie beside it until all
  is done. `keep` says which layers of the subject the model has, where it is cut already, and `trained` what its
  weights went through since.
  """
  text = {"name": data.calibration or data.source, "digest": digest(texts.calibration)}
  about = (
    subject.identity
    if keep is None
    else subject.identity | {"digest": f"{subject.identity['digest']} {keep} {trained}"}
  )
  standing = scores_file.standing_scores(out, config, about, text)
  about_text = text | {"windows": config.windows, "window": config.window}

  def content(new: Scores) -> dict[str, Any]:
    scores = Scores(criteria=standing.criteria | new.criteria, baseline=new.baseline or standing.baseline)
    return scores_file.to_json(scores, settings=config, model=about, data=about_text)

  missing = [name for name in criteria if name not in standing.criteria]
  if not missing:
    return content(Scores(criteria={}))
  ids_NT = first_windows(
    texts.calibration, subject.tokenizer, count=config.windows, length=config.window, eos=subject.eos[0]
  )
  # All that decides which windows are one batch of losses.
  batches = [about, text, config.windows, config.window, config.batch_size, config.removal_windows]
  journal = Journal(out.with_name(f"{out.name}.partial"), json.dumps(batches))
  found = score(model, ids_NT, missing, config, journal=journal, done=lambda new: write_json(out, content(new)))
  journal.close()
  return content(found)


def plan(
  subject: Subject,
  recipe: Recipe,
  found: Callable[[tuple[int, ...]], Mapping[str, Any]],
  share: Callable[[], float],
  search: Callable[[int | None], Plan],
) -> Plan:
  """Returns which layers stay by a recipe's `prune`, and what is merged into them or stands for the others.

  Where a criterion chooses, `found` gives the content of a scores.json about the model that some of the layers make.
  `share` is `layer_share`, for a latency target, and `search` is `merged_plan` of as many layers to go as a target
  says, for a merge that chooses them itself; both run the whole model.
  """
  about: dict[str, Any] = {}

  def score_of(criterion: str, keep: tuple[int, ...]) -> Score:
    content = found(keep)
    about.update(content["data"])
    scores = scores_file.from_json(content).criteria
    if criterion not in scores:
      raise UsageError(f"prune.criterion: the scores hold {', '.join(scores)}, not {criterion}; score it first")
    if len(scores[criterion].per_layer) != len(keep):
      raise UsageError(
        f"the scores are of {len(scores[criterion].per_layer)} layers, {subject.name} has {len(keep)} to score"
      )
    return scores[criterion]

  config, size = recipe.prune, sizes(subject, recipe.export)
  if config.merge in ("laco", "slm", "mka"):
    if chooser := next((n for n in ("drop", "keep", "pattern", "criterion") if getattr(config, n) is not None), None):
      raise UsageError(f"prune.{chooser}: {config.merge} chooses the layers itself; leave one of the two out")
    return search(how_many(config, size, share) if targets(config) else None)
  # The layer that streamline trains stands for one more than go.
  choice = choose(config, size, score_of, share, more=int(config.merge == "streamline"))
  repair, keep = None, choice.keep
  if config.merge:
    repair = repair_of(config.merge, without(choice.keep, size.layers))
    keep = without(range(repair.start + int(config.merge == "streamline"), repair.end), size.layers)
  return Plan(
    source=subject.identity,
    layers=subject.checkpoint.layers,
    keep=keep,
    criterion=choice.criterion,
    definition="; ".join([choice.definition, *([MERGES[config.merge]] if config.merge else [])]),
    data=about or None,
    repair=repair,
  )


def merged_plan(subject: Subject, recipe: Recipe, model: Llama, text: Texts, count: int | None) -> Plan:
  """Returns what a recipe's merge makes of the whole model on the calibration text; `count` None is its threshold."""
  merging, merge = recipe.merging, recipe.prune.merge
  assert merge is not None
  sentences = first_sentences(
    text.calibration, subject.tokenizer, count=merging.sentences, length=merging.sentence_tokens
  )
  found = merged(model, merge, merging, count, sentences)
  return Plan(
    source=subject.identity,
    layers=subject.checkpoint.layers,
    keep=found.keep,
    criterion=merge,
    definition=MERGES[merge],
    data={
      "name": recipe.data.calibration or recipe.data.source,
      "digest": digest(text.calibration),
      "sentences": merging.sentences,
      "sentence_tokens": merging.sentence_tokens,
    },
    merges=found.merges,
  )


def cut(subject: Subject, model: Llama, made: Plan, config: MergingConfig, texts: Callable[[], Texts]) -> Llama:
  """Returns the model that a plan makes of the whole one; a layer or map in place of others is fitted now."""

  def windows() -> tuple[np.ndarray, np.ndarray]:
    ids_NT = first_windows(
      texts().training, subject.tokenizer, count=config.windows, length=config.window, eos=subject.eos[0]
    )
    return ids_NT, np.ones(ids_NT.shape, bool)

  return cut_model(model, made, config, windows)


def layer_share(model: Llama) -> float:
  """Returns the share of a model's time per decoded token that one layer takes, from it and its first half in turn."""
  layers = len(model.layers)
  half = max(1, layers // 2)
  speeds = compare_speed({"whole": model, "half": keep_layers(model, range(half))})
  whole, part = (1 / speeds[name].decode_tokens_per_second for name in ("whole", "half"))
  if layers == half or part >= whole:
    raise UsageError("prune.latency: fewer layers do not decode faster here; say how many layers by another target")
  return (whole - part) / (layers - half) / whole


def sizes(subject: Subject, export: ExportConfig) -> Sizes:
  """Returns what the whole model weighs when it is written with these settings."""
  checkpoint = subject.checkpoint
  counts = {name: tensor.bytes // tensor.dtype.itemsize for name, tensor in checkpoint.tensors.items()}
  dtype = config_dtype(checkpoint, export.dtype) or checkpoint.tensors[EMBEDDING].dtype
  return Sizes(
    layers=checkpoint.layers,
    per_layer=sum(count for name, count in counts.items() if layer_of(name) == 0),
    outside=sum(count for name, count in counts.items() if layer_of(name) is None),
    parameter_bytes=np.dtype(dtype).itemsize,
  )


def card(subject: Subject, plan: Plan, *, summary: Mapping[str, Any] | None = None, recipe: str = "") -> str:
  """Returns the model card of what the plan leaves of a model, with results where `summary` has them."""
  checkpoint = subject.checkpoint
  builtin = checkpoint.name == BUILTIN
  base = MODEL_CARD["base_model"] if builtin else checkpoint.name.partition("@")[0] if checkpoint.revision else None
  return model_card(
    name=f"{Path(base or checkpoint.name).name}-{len(plan.keep)}-layers",
    plan=to_json(plan),
    base_model=base,
    license=MODEL_CARD["license"] if builtin else None,
    summary=summary,
    recipe=recipe,
  )


def write(
  subject: Subject,
  model: Llama,
  plan: Plan,
  out: Path,
  config: ExportConfig,
  *,
  overwrite: bool,
  summary: Mapping[str, Any] | None = None,
  recipe: str = "",
) -> Exported:
  """Writes a run's model as a Hugging Face folder with its card; the check compares it with the run's weights."""
  assert subject.run is not None
  return export_model(
    model,
    subject.checkpoint,
    out,
    keep=plan.keep,
    dtype=config.dtype,
    max_shard_size=config.max_shard_size,
    overwrite=overwrite,
    readme=card(subject, plan, summary=summary, recipe=recipe),
    provenance={"reference": subject.reference, "plan": to_json(plan), "recipe": recipe},
  )


def write_adapters(subject: Subject, base: str, out: Path, *, overwrite: bool) -> dict[str, Any]:
  """Writes a run's adapters as a folder for peft; `base` is what loaders find the model under that they belong to.

  Raises UsageError when the run trained something else, or the base has another shape.
  """
  parts = subject.parts()
  settings = settings_of(parts.meta["config"])
  if settings.trainable not in ADAPTERS:
    raise UsageError(f"--adapter: {subject.name} trained {settings.trainable}, not adapters; export it as a model")
  checkpoint = open_checkpoint(base)
  own = checkpoint.architecture, checkpoint.layers
  if own != (subject.checkpoint.architecture, len(subject.keep)):
    raise UsageError(
      f"--adapter: {base} is not the model that {subject.name} trained, of {len(subject.keep)} layers; write it with "
      f"`jaxchop prune {subject.checkpoint.name} --plan {subject.name}/plan.json -o …`"
    )
  provenance = {"run": subject.name, "step": parts.meta["step"], "trainable": settings.trainable}
  files = write_adapter(parts.trained, settings.adapter, out, base=base, provenance=provenance, overwrite=overwrite)
  return {"folder": str(out), "files": files, "base": base, "parameters": sum(a.size for a in parts.trained.values())}


def check(folder: Path, source: str | None = None) -> CheckReport:
  """Returns the proof of a Hugging Face folder by a fresh process, which can open runs too."""
  return check_in_fresh_process(folder, source=source, reference="jaxchop.subject:load_reference")
