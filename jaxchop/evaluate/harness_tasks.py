"""Tasks of lm-evaluation-harness and groups of ours: found by name, run on a model, what came out in plain numbers."""

import functools
import hashlib
import logging
import math
from collections.abc import Collection, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from jaxchop.errors import JaxchopError, UsageError
from jaxchop.evaluate.answers import Answers
from jaxchop.evaluate.figures import figure
from jaxchop.evaluate.harness import HarnessConfig, JaxchopLM
from jaxchop.model.llama import Llama

# Only behind the harness, which says in one line what is missing where it is not installed.
from lm_eval.evaluator import simple_evaluate  # isort: skip
from lm_eval.tasks import TaskManager  # isort: skip

# Tasks that have lines of their own in a table; of more there is only what their group says.
_FEW = 10
# Groups of tasks that lm-eval does not have.
FOLDER = Path(__file__).parent / "tasks"


class Tasks(TaskManager):
  """lm-eval's tasks with ours among them; raises JaxchopError when a data set cannot be had."""

  def __init__(self, *arguments: Any, include_path: Any = None, **options: Any):
    given = include_path if isinstance(include_path, list | tuple) else [include_path] if include_path else []
    super().__init__(*arguments, include_path=[FOLDER, *given], **options)

  def load(self, task_list: Any) -> Any:
    try:
      return super().load(task_list)
    # Both are what the data set library raises without a network: for a set that it does not hold, or does not know.
    except (ConnectionError, FileNotFoundError) as error:
      reason = str(error).strip().partition("\n")[0]
      raise JaxchopError(
        f"a data set cannot be had: {reason}; fetch it on a machine with a network and copy its folder of HF_HOME, or "
        "name a local file as dataset_path in a task of your own"
      ) from error


@functools.cache
def tasks_of(folder: Path | None = None) -> Tasks:
  """Returns all tasks there are, those described in a folder of the user's too; reading them takes seconds."""
  if folder is not None and not folder.is_dir():
    raise UsageError(f"{folder}: no folder; name one with lm-eval's yaml files")
  return Tasks(include_path=None if folder is None else [folder])


def require(task: str, folder: Path | None = None) -> None:
  """Raises UsageError unless there is a task or group of this name."""
  if not tasks_of(folder).match_tasks([task]):
    raise UsageError(f"task {task} is unknown; `python -m jaxchop.lm_eval ls tasks` lists them all")


def what_it_is(task: str, folder: Path | None = None) -> list[str]:
  """Returns what a task's results depend on beside the model: lm-eval's version, and the files that describe ours."""
  files = [*FOLDER.glob("*.yaml"), *(folder.rglob("*") if folder else ())]
  content = [hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(files) if file.is_file()]
  return [task, version("lm_eval"), *content]


def evaluate_tasks(
  model: Llama,
  tokenizer: PreTrainedTokenizerFast,
  tasks: Sequence[str],
  config: HarnessConfig | None = None,
  *,
  eos: Collection[int] = (),
  num_fewshot: int | None = None,
  limit: int | None = None,
  chat: bool = False,
  folder: Path | None = None,
  answers: Answers | None = None,
) -> dict[str, Any]:
  """Returns what the model scores: `tasks` and `groups` by name, with metrics, standard errors, version and count.

  A metric that is the mean over documents has its `samples`, one a document.

  `num_fewshot` None leaves the number of examples to each task, `limit` takes so many documents of each, `chat` writes
  them with the tokenizer's template, `folder` has task files of one's own. With `config.answers`, or `answers` of this
  model, an interrupted evaluation goes on where it stopped. Raises UsageError on an unknown task, JaxchopError when a
  data set cannot be had.
  """
  known = tasks_of(folder)
  for task in tasks:
    require(task, folder)
  # It warns at each task of what was asked for here.
  logging.getLogger("lm_eval").setLevel(logging.ERROR)
  found: Any = simple_evaluate(
    model=JaxchopLM(model, tokenizer, config, eos=eos, answers=answers),
    tasks=[*tasks],
    num_fewshot=num_fewshot,
    limit=limit,
    apply_chat_template=chat,
    fewshot_as_multiturn=chat,
    task_manager=known,
    log_samples=True,
  )
  return {
    "lm_eval": version("lm_eval"),
    "tasks": {name: _task(name, found) for name in found["n-samples"]},
    "groups": {name: _group(name, found, known) for name in found.get("group_subtasks", {})},
  }


def _task(name: str, found: Mapping[str, Any]) -> dict[str, Any]:
  return {
    "metrics": _metrics(found["results"][name], found["samples"][name]),
    "version": found["versions"][name],
    "n": found["n-samples"][name]["effective"],
    "num_fewshot": found["n-shot"][name],
  }


def _metrics(values: Mapping[str, Any], samples: Sequence[Mapping[str, Any]] = ()) -> dict[str, dict[str, Any]]:
  """Returns {metric: value, standard error, samples}; lm-eval's filter is part of the name unless it is "none"."""
  metrics = {}
  for key, value in values.items():
    metric, comma, kind = key.partition(",")
    if comma and not metric.endswith("_stderr"):
      error = values.get(f"{metric}_stderr,{kind}")
      name = metric if kind == "none" else key
      metrics[name] = {
        "value": float(value),
        "error": float(error) if isinstance(error, int | float) else None,
        "samples": _averaged(float(value), [one[metric] for one in samples if one["filter"] == kind and metric in one]),
      }
  return metrics


def _averaged(value: float, samples: Sequence[Any]) -> list[float]:
  """Returns the samples of a metric if it is their mean; others are pairs of numbers, or put together in other ways."""
  if not samples or not all(isinstance(one, int | float) for one in samples):
    return []
  return [float(one) for one in samples] if math.isclose(sum(samples) / len(samples), value, abs_tol=1e-9) else []


def _group(name: str, found: Mapping[str, Any], known: Tasks) -> dict[str, Any]:
  """Returns what lm-eval averages over a group, and the mean of the metrics that the group names itself."""
  entry = known.task_index.get(name)
  settings = (entry.cfg if entry else None) or {}
  averaged: dict[str, str] = settings.get("metadata", {}).get("averaged", {})
  group: dict[str, Any] = {"metrics": _metrics(found.get("groups", {}).get(name, {}))}
  if averaged:
    every = {**found["results"], **found.get("groups", {})}
    parts: list[Any] = [_metrics(every[task])[metric] for task, metric in averaged.items()]
    value = sum(part["value"] for part in parts) / len(parts)
    errors = [part["error"] for part in parts]
    error = None if None in errors else math.hypot(*errors) / len(parts)
    group["mean"] = {"value": value, "error": error, "of": averaged}
  return group


def measured(
  model: Llama,
  tokenizer: PreTrainedTokenizerFast,
  task: str,
  *,
  answers: Answers,
  eos: Collection[int],
  limit: int | None,
  folder: Path | None,
) -> dict[str, Any]:
  """Returns what the model scores on a task or group as a suite's result: protocol, figures, and all that there is."""
  found = evaluate_tasks(model, tokenizer, [task], eos=eos, limit=limit, folder=folder, answers=answers)
  figures: dict[str, Any] = {}
  chosen: Mapping[str, str] = {}
  for name, group in found["groups"].items():
    if mean := group.get("mean"):
      chosen |= mean["of"]
      figures[f"{name}, mean"] = figure(mean["value"], "share", error=mean["error"])
    else:
      figures |= {f"{name} {metric}": _figure(metric, one) for metric, one in group["metrics"].items()}
  if len(found["tasks"]) <= _FEW:
    for name, one in found["tasks"].items():
      wanted = {metric: value for metric, value in one["metrics"].items() if chosen.get(name, metric) == metric}
      figures |= {f"{name} {metric}": _figure(metric, value) for metric, value in wanted.items()}
  shots = sorted({one["num_fewshot"] for one in found["tasks"].values()})
  asked = sum(one["n"] for one in found["tasks"].values())
  versions = ", ".join(f"{name} {one['version']}" for name, one in found["tasks"].items())
  examples = " or ".join(map(str, shots)) + (" example" if shots == [1] else " examples")
  words = f"lm-eval {found['lm_eval']}, {asked:,} documents, {examples} before each"
  return {
    "protocol": f"{words}; versions: {versions}" if len(found["tasks"]) <= _FEW else words,
    "figures": figures,
  } | found


def _figure(metric: str, one: Mapping[str, Any]) -> dict[str, Any]:
  unit = "share" if metric.startswith(("acc", "exact_match")) else "number"
  return figure(one["value"], unit, one["samples"], error=one["error"])
