"""What a run did, said in words: the headline, its numbers, and what has not been run or measured."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from jaxchop import wording
from jaxchop.hub.builtin import BUILTIN, MODEL_CARD
from jaxchop.report import limits
from jaxchop.report.cliff import solves
from jaxchop.report.results import Measured, Run


@dataclass(frozen=True, slots=True)
class Tile:
  """One headline number: what it is now, and what it was."""

  label: str
  value: str
  note: str


def name(run: Run) -> str:
  """The model the run started from, without its owner and the folders of this machine."""
  return source(run).rpartition("/")[2] or run.name


def source(run: Run) -> str:
  """Where the model came from; the builtin one by the name that others know it by."""
  given = run.plan.source if run.plan else run.scored.model
  return MODEL_CARD["base_model"] if given == BUILTIN else wording.model_name(given)


def lede(run: Run) -> str:
  """What was done, as far as it has been done."""
  plan = run.plan
  if plan is None:
    return "No layers have been chosen yet."
  scored = plan.criterion in {score.name for score in run.scores}
  chosen = f", chosen by their {wording.criterion(plan.criterion)}" if scored else ""
  gone = f"{len(plan.drop)} of {plan.layers} decoder layers are gone{chosen}."
  return " ".join(filter(None, (gone, _recovery(run), _gap(run), _cliff(run), _speed(run))))


def _recovery(run: Run) -> str:
  if run.tokens:
    return f"What is left was trained on {wording.count(run.tokens)} tokens."
  steps = len(run.steps)
  return f"What is left was trained for {wording.count(steps)} steps." if steps else "What is left is not trained."


def _gap(run: Run) -> str:
  values = [first_perplexity(run.model(model)) for model in ("original", "pruned", "recovered")]
  known = [wording.number(value) for value in values if value is not None]
  if len(known) < len(values):
    return ""
  moved = f"Held-out perplexity went from {known[0]} to {known[1]} by pruning and to {known[2]} by training"
  closed = run.gap_closed
  if closed is None or not math.isfinite(closed):
    return f"{moved}."
  share = f"{wording.percent(closed)} of the gap in log perplexity is closed" if closed > 0 else "no gap is closed"
  return f"{moved}: {share}."


def _cliff(run: Run) -> str:
  original, small = run.model("original"), _small(run, lambda model: model.capability)
  if original is None or small is None or original.capability is None or small.capability is None:
    return ""
  return solves("it", small.capability, "the original", original.capability)


def _speed(run: Run) -> str:
  times = _times_original(run, lambda model: model.decode)
  return f"It decodes at {times} the speed of the original." if times else ""


def scored(run: Run) -> str:
  """What the scores were computed on; empty where they do not say."""
  on = run.scored
  if not run.scores or not on.windows or not on.window:
    return ""
  text = f"text of {wording.model_name(on.text)}" if on.text and on.text != BUILTIN else "calibration text"
  said = f"Scored on {wording.count(on.windows)} windows of {wording.count(on.window)} tokens of {text}"
  if on.nll is None or not 0 <= on.nll < 700:
    return f"{said}."
  return f"{said}; the whole model has a perplexity of {wording.number(math.exp(on.nll))} there."


def tiles(run: Run) -> tuple[Tile, ...]:
  """The headline numbers that the run has."""
  found: list[Tile | None] = []
  if run.plan:
    found.append(Tile("Layers", str(len(run.plan.keep)), f"of {run.plan.layers}"))
  found += [
    _reduced("Parameters", run, lambda model: model.parameters, wording.count),
    _reduced("Size", run, lambda model: model.bytes, wording.size),
    _perplexity(run),
    Tile("Gap closed", wording.percent(run.gap_closed), "of log perplexity") if run.gap_closed is not None else None,
    _faster(run),
  ]
  return tuple(tile for tile in found if tile)


def _reduced(label: str, run: Run, value: Callable[[Measured], int | None], words: Callable) -> Tile | None:
  original, small = run.model("original"), _small(run, value)
  before = value(original) if original else None
  after = value(small) if small else None
  if before is None or after is None:
    return None
  return Tile(label, words(after), f"from {words(before)}, {wording.change(after, before) or 'the same'}")


def _perplexity(run: Run) -> Tile | None:
  known = [(model.name, value) for model in run.models if (value := first_perplexity(model)) is not None]
  if not known:
    return None
  *before, (last, value) = known
  note = ", ".join(f"{model} {wording.number(value)}" for model, value in before)
  return Tile("Held-out perplexity", wording.number(value), note or last)


def _faster(run: Run) -> Tile | None:
  decode = _times_original(run, lambda model: model.decode)
  prefill = _times_original(run, lambda model: model.prefill)
  if not decode:
    return None
  return Tile("Decode speed", decode, f"of the original, prefill {prefill}" if prefill else "of the original")


def _times_original(run: Run, value: Callable[[Measured], float | None]) -> str:
  original, small = run.model("original"), _small(run, value)
  if original is None or small is None:
    return ""
  return wording.ratio(value(small) or math.nan, value(original) or math.nan)


def _small(run: Run, value: Callable[[Measured], float | None]) -> Measured | None:
  """The model furthest on its way of which the value is known."""
  return next((model for model in run.models[::-1] if model.name != "original" and value(model) is not None), None)


def first_perplexity(model: Measured | None) -> float | None:
  """The perplexity under the first protocol."""
  return model.perplexity[0][1] if model and model.perplexity else None


def not_run(run: Run) -> tuple[str, ...]:
  """What a whole job does and this run has not done, yet."""
  wanted = {
    "choosing layers (no plan.json)": run.plan,
    "scoring layers (no scores.json)": run.scores,
    "training what is left (no metrics.jsonl)": run.steps,
    "measuring perplexity": any(model.perplexity for model in run.models),
    "probing capability": any(model.capability is not None for model in run.models),
    "measuring speed": any(model.decode or model.prefill for model in run.models),
    "checking the export": run.check,
  }
  return tuple(words for words, done in wanted.items() if not done)


def honesty(run: Run) -> tuple[limits.Limit, ...]:
  """What the numbers of this run do not say."""
  probed = any(model.capability is not None for model in run.models)
  said = [limits.GENERATION, limits.SMALL_TASKS if probed else limits.OWN_TASK]
  if any(model.perplexity for model in run.models):
    said += [limits.ONE_TEXT, limits.PROTOCOL]
  if any(model.decode or model.prefill for model in run.models):
    said.append(limits.SPEED)
  if run.steps:
    said.append(limits.ONE_SEED)
  return tuple(said)
