"""Tasks of lm-evaluation-harness and ours, found by name, run on a model, and what came out in plain numbers."""

import functools
import logging
import math
from collections.abc import Collection, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from jaxchop.errors import JaxchopError, UsageError
from jaxchop.evaluate.harness import HarnessConfig, JaxchopLM
from jaxchop.model.llama import Llama

# Only behind the harness, which says in one line what is missing where it is not installed.
from lm_eval.evaluator import simple_evaluate  # isort: skip
from lm_eval.tasks import TaskManager  # isort: skip

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
) -> dict[str, Any]:
  """Returns what the model scores: `tasks` and `groups` by name, with metrics, standard errors, version and count.

  `num_fewshot` None leaves the number of examples to each task, `limit` takes so many documents of each, `chat` writes
  them with the tokenizer's template, `folder` has task files of one's own. With `config.answers`, an interrupted
  evaluation goes on where it stopped. Raises UsageError on an unknown task, JaxchopError when a data set cannot be had.
  """
  known = tasks_of(folder)
  for task in tasks:
    if not known.match_tasks([task]):
      raise UsageError(f"task {task} is unknown; `python -m jaxchop.lm_eval ls tasks` lists them all")
  # It warns at each task of what was asked for here.
  logging.getLogger("lm_eval").setLevel(logging.ERROR)
  found: Any = simple_evaluate(
    model=JaxchopLM(model, tokenizer, config, eos=eos),
    tasks=[*tasks],
    num_fewshot=num_fewshot,
    limit=limit,
    apply_chat_template=chat,
    fewshot_as_multiturn=chat,
    task_manager=known,
    log_samples=False,
  )
  return {
    "lm_eval": version("lm_eval"),
    "tasks": {name: _task(name, found) for name in found["n-samples"]},
    "groups": {name: _group(name, found, known) for name in found.get("group_subtasks", {})},
  }


def _task(name: str, found: Mapping[str, Any]) -> dict[str, Any]:
  return {
    "metrics": _metrics(found["results"][name]),
    "version": found["versions"][name],
    "n": found["n-samples"][name]["effective"],
    "num_fewshot": found["n-shot"][name],
  }


def _metrics(values: Mapping[str, Any]) -> dict[str, dict[str, float | None]]:
  """Returns {metric: value and standard error}; lm-eval's filter is part of the name unless it is "none"."""
  metrics = {}
  for key, value in values.items():
    metric, comma, kind = key.partition(",")
    if comma and not metric.endswith("_stderr"):
      error = values.get(f"{metric}_stderr,{kind}")
      name = metric if kind == "none" else key
      metrics[name] = {"value": float(value), "error": float(error) if isinstance(error, int | float) else None}
  return metrics


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
