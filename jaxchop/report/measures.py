"""What suites say of several models: a row a figure, with its error and the difference from the first model's."""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxchop import wording
from jaxchop.evaluate.figures import apart
from jaxchop.report.comparison import Cell, Row

Entry = Mapping[str, Any]


def measures(models: Sequence[Entry]) -> tuple[Row, ...]:
  """Returns the rows of all figures that a model has, in their order; `models` are entries of `measure`.

  A difference is that of the models' samples, pair by pair: of perplexities in nats, of shares in points.
  """
  names = dict.fromkeys(
    (suite, name) for model in models for suite, result in model["suites"].items() for name in result["figures"]
  )
  return tuple(_row(suite, name, models) for suite, name in names)


def _row(suite: str, name: str, models: Sequence[Entry]) -> Row:
  found = [model["suites"].get(suite, {}).get("figures", {}).get(name) for model in models]
  first = found[0]
  cells = []
  for model, one in zip(models, found, strict=True):
    against = "" if one is None or first is None or model is models[0] else _against(one, first)
    cells.append(Cell("" if one is None else wording.figure(one["value"], one["error"], one["unit"]), against))
  protocols = dict.fromkeys(model["suites"][suite]["protocol"] for model in models if suite in model["suites"])
  return Row(name, tuple(cells), "; ".join(protocols))


def _against(one: Entry, first: Entry) -> str:
  if (found := apart(one, first)) is None:
    # Figures without samples of their own, or other samples: what is left is the plain difference of what has a scale.
    return wording.change(one["value"], first["value"]) if one["unit"] == "bits" else ""
  mean, error = found
  scale, decimals, unit = (100, 1, "points") if one["unit"] == "share" else (1, 4, "nats")
  unit = "" if one["unit"] == "number" else f"\u00a0{unit}"
  sure = "" if error is None else f"\u00a0±\u00a0{scale * error:.{decimals}f}"
  return f"{scale * mean:+.{decimals}f}{sure}".replace("-", "\u2212") + unit
