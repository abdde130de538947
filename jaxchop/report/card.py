"""The model card of an export: what was removed, how, what it cost, and how to load it."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from jaxchop import wording
from jaxchop.report import limits
from jaxchop.report.comparison import comparison, marked, notes
from jaxchop.report.fields import Fields
from jaxchop.report.results import Measured, Plan, read_models, read_plan

_TAGS = ["pruned", "layer-pruning", "depth-pruning", "jaxchop"]
# Characters that Markdown or the HTML inside it would act on.
_ACTIVE = re.compile(r"([\\`*\[\]|<>&])")


def model_card(
  *,
  name: str,
  plan: Mapping[str, Any],
  base_model: str | None = None,
  license: str | None = None,
  languages: Sequence[str] = (),
  datasets: Sequence[str] = (),
  summary: Mapping[str, Any] | None = None,
  recipe: str = "",
) -> str:
  """README.md of an export: YAML front matter as the Hub reads it, then the story in Markdown.

  `plan` is the content of plan.json, `summary` that of summary.json as far as it is known (a pure prune may give the
  layers, parameters and bytes of original and pruned, or nothing), `recipe` the YAML that made the model. `base_model`
  and `datasets` are hub ids. Raises JaxchopError where plan or summary is not what it should be.
  """
  chosen, known = read_plan(Fields("plan.json", plan)), summary or {}
  models = read_models(known)
  source = base_model or wording.model_name(chosen.source) or "its source"
  sections = [
    f"# {_inert(name)}",
    _opening(source, chosen, known),
    _removed(chosen),
    _results(models, known),
    _limits(models),
    _loading(),
    f"## Recipe\n\n{_fenced(recipe, 'yaml')}" if recipe else "",
  ]
  front = _front_matter(name, base_model, license, languages, datasets, models)
  return f"---\n{front}---\n\n" + "\n\n".join(filter(None, sections)) + "\n"


def _front_matter(
  name: str,
  base_model: str | None,
  license: str | None,
  languages: Sequence[str],
  datasets: Sequence[str],
  models: Sequence[Measured],
) -> str:
  fields = {
    "base_model": base_model,
    "base_model_relation": "finetune" if base_model else None,
    "library_name": "transformers",
    "pipeline_tag": "text-generation",
    "license": license,
    "language": list(languages),
    "datasets": list(datasets),
    "tags": _TAGS,
    "model-index": _model_index(name, models),
  }
  return yaml.safe_dump({key: value for key, value in fields.items() if value}, sort_keys=False)


def _model_index(name: str, models: Sequence[Measured]) -> list[dict[str, Any]]:
  """The results of the exported model, which is the furthest of the run's."""
  small = [model for model in models if model.name != "original"]
  found = [
    {
      "task": {"type": "text-generation"},
      "dataset": {"name": protocol, "type": "text"},
      "metrics": [{"type": "perplexity", "name": f"perplexity ({protocol})", "value": value}],
    }
    for protocol, value in (small[-1].perplexity if small else ())
    if math.isfinite(value)
  ]
  return [{"name": name, "results": found}] if found else []


def _opening(source: str, plan: Plan, summary: Mapping[str, Any]) -> str:
  tokens = Fields("summary.json", summary).integer("tokens")
  gone = f"{_inert(source)} with {len(plan.drop)} of its {plan.layers} decoder layers removed"
  if tokens:
    head = " Its output head, the source's embedding, became a parameter of its own." if summary.get("untied") else ""
    return f"{gone}, then trained on {wording.count(tokens)} tokens to recover.{head} Made with jaxchop."
  return f"{gone}. It was **not trained afterwards** and needs recovery. Made with jaxchop."


def _removed(plan: Plan) -> str:
  rule = f"Rule: **{_inert(wording.criterion(plan.criterion))}**: {_inert(plan.definition)}" if plan.criterion else ""
  kept = ", ".join(map(str, plan.keep))
  lines = [
    "## What was removed",
    f"The plan {_inert(plan.words)} (0-based, both ends included).",
    rule,
    f"The layers of this model are these of the source, in order: {kept}.",
  ]
  return "\n\n".join(filter(None, lines))


def _results(models: Sequence[Measured], summary: Mapping[str, Any]) -> str:
  rows = comparison(models)
  if not rows:
    return ""
  footnotes = notes(rows)
  lines = [
    "| | " + " | ".join(model.name for model in models) + " |",
    "|---|" + "---:|" * len(models),
    *(
      f"| {marked(row, footnotes)} | "
      + " | ".join(f"{cell.value or '–'}{f' ({cell.against})' if cell.against else ''}" for cell in row.cells)
      + " |"
      for row in rows
    ),
  ]
  said = [f"{wording.mark(index)} {_inert(note)}" for index, note in enumerate(footnotes)]
  closed = Fields("summary.json", summary).number("gap_closed")
  if closed is not None:
    said.append(f"Recovery closed {wording.percent(closed)} of the gap in log perplexity that pruning opened.")
  return "\n\n".join(["## Results", "\n".join(lines), *said])


def _limits(models: Sequence[Measured]) -> str:
  said = [limits.GENERATION, limits.OWN_TASK]
  if any(model.perplexity for model in models):
    said += [limits.ONE_TEXT, limits.PROTOCOL]
  return "## Limits\n\n" + "\n".join(f"- **{lead}** {text}" for lead, text in said)


def _loading() -> str:
  code = """from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "."  # this folder, or its id on the Hub
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder)
inputs = tokenizer("A list in Python is", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=40)[0]))"""
  return f"## Use\n\nA stock Llama checkpoint; no code of its own.\n\n{_fenced(code, 'python')}"


def _inert(text: str) -> str:
  """Text from outside on one line, with nothing in it that Markdown or HTML acts on."""
  return _ACTIVE.sub(r"\\\1", wording.printable(" ".join(text.split())))


def _fenced(text: str, language: str) -> str:
  """A code block whose fence is longer than any row of backticks inside."""
  longest = max((len(row) for row in re.findall("`+", text)), default=0)
  fence = "`" * max(3, longest + 1)
  return f"{fence}{language}\n{text.rstrip()}\n{fence}"
