"""`jaxchop forecast`: what more training would give a pruned model, from short probes of the same recipe."""

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxchop.config import Recipe
from jaxchop.files import locked, write_bytes, write_json
from jaxchop.prune.plan import Plan
from jaxchop.recover.forecast import Law, fit
from jaxchop.report import expected as report
from jaxchop.trials import Trials
from jaxchop.versions import machine, versions

log = logging.getLogger("jaxchop")
# Shares of the recipe's steps that the probes take when none are named; together a quarter of it.
_SHARES = (1 / 64, 1 / 32, 1 / 16, 1 / 8)
_NAME = "probe"


def forecast(
  recipe: Recipe,
  out: Path,
  *,
  plan: Plan | None = None,
  tokens: Sequence[int] = (),
  target: float | None = None,
  gain: float = 0.01,
  chip_flops: float | None = None,
  seed: int = 0,
) -> dict[str, Any]:
  """Trains the recipe's pruned model on several numbers of tokens and returns what forecast.json holds.

  Every probe is the recipe in small: its schedule from beginning to end, its warm-up the same share of the steps.
  Foretold are the losses of the recipe and of more, the tokens, FLOPs and hours to the perplexity `target`, and the
  tokens from which on twice as many gain less than `gain` nats. Hours are those of the devices here, or of one chip of
  `chip_flops` useful FLOPs a second. Probes that stand are not trained again.
  """
  with locked(out):
    trials = Trials({_NAME: recipe}, out, plan)
    before, probes = trials.before(), []
    for number, steps in enumerate(lengths := _lengths(recipe, tokens), start=1):
      warmup = round(recipe.recover.optimizer.warmup_steps * steps / recipe.recover.steps)
      log.info("Probe %d of %d: %d steps", number, len(lengths), steps)
      probes.append(trials.result(_NAME, steps, seed, warmup_steps=warmup))
    nll_PN = np.array([probe["window_nll"] for probe in probes])
    law = fit([probe["spent"]["tokens"] for probe in probes], nll_PN, np.array(probes[0]["window_tokens"], float))
    content = {
      "plan": trials.plan.words,
      "protocol": str(trials.protocol),
      **before,
      "law": {name: getattr(law, name) for name in ("floor", "scale", "power", "worst")},
      "probes": [_point(law, probe["spent"]["tokens"]) | _measured(probe) for probe in probes],
      "expected": [_point(law, asked) for asked in _ahead(recipe, probes)],
      "enough": {"gain": gain, "tokens": law.enough(gain), **_point(law, law.enough(gain))},
      "flops_per_token": trials.flops_per_token[_NAME],
      "flops_per_second": chip_flops or _flops_per_second(probes),
      "chip": chip_flops is not None,
      "versions": versions(),
      "machine": machine(),
    }
    if target is not None:
      low, high = law.tokens_interval(math.log(target))
      content["target"] = {"perplexity": target, "tokens": law.tokens_to(math.log(target)), "interval": [low, high]}
    write_json(out / "forecast.json", content)
    write_bytes(out / "forecast.png", report.plot(content))
  return content | {"folder": str(out)}


def _lengths(recipe: Recipe, tokens: Sequence[int]) -> list[int]:
  """Returns the probes' steps, the shortest first."""
  recover = recipe.recover
  asked = [count / (recover.batch_size * recover.seq_len) for count in tokens]
  return sorted({max(round(steps), 1) for steps in asked or [share * recover.steps for share in _SHARES]})


def _ahead(recipe: Recipe, probes: Sequence[dict[str, Any]]) -> list[int]:
  """Returns the numbers of tokens to foretell: of the recipe, and twice the longest probe's again and again."""
  whole = recipe.recover.steps * recipe.recover.batch_size * recipe.recover.seq_len
  longest = max(probe["spent"]["tokens"] for probe in probes)
  return sorted({whole, *(longest << times for times in range(1, 9))})


def _point(law: Law, tokens: float) -> dict[str, Any]:
  low, high = law.interval(tokens)
  return {"tokens": tokens, "expected": math.exp(law.loss(tokens)), "interval": [math.exp(low), math.exp(high)]}


def _measured(probe: dict[str, Any]) -> dict[str, Any]:
  return {name: probe[name] for name in ("perplexity", "nll", "nll_error", "flops")} | {
    "seconds": probe["spent"]["seconds"]
  }


def _flops_per_second(probes: Sequence[dict[str, Any]]) -> float:
  """Returns the useful operations a second of the longest probe on the devices here."""
  longest = max(probes, key=lambda probe: probe["spent"]["tokens"])
  return longest["flops"] / longest["spent"]["seconds"]
