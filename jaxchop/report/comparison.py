"""Original, pruned and recovered side by side: the rows that the page, the terminal and the model card show."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from jaxchop import wording
from jaxchop.report.results import Measured


@dataclass(frozen=True, slots=True)
class Cell:
  """One number in words, and what it is against the original's."""

  value: str
  against: str = ""


@dataclass(frozen=True, slots=True)
class Row:
  """One quantity of every model; `note` says how it was measured."""

  label: str
  cells: tuple[Cell, ...]
  note: str = ""


def comparison(models: Sequence[Measured]) -> tuple[Row, ...]:
  """The rows that at least one model has a number for; perplexities one row a protocol."""
  rows = [
    _row("Layers", models, lambda model: model.layers, wording.count, wording.change),
    _row("Parameters", models, lambda model: model.parameters, wording.count, wording.change),
    _row("Bytes", models, lambda model: model.bytes, wording.size, wording.change),
  ]
  protocols = dict.fromkeys(protocol for model in models for protocol, _ in model.perplexity)
  for protocol in protocols:
    rows.append(_perplexity(models, protocol))
  note = next(iter(protocols), "")
  rows += [
    _row("Bits per byte", models, lambda model: model.bits_per_byte, wording.bits, wording.change, note),
    _capability(models),
    *_further(models),
    _speed("Decode, tokens/s", models, lambda model: model.decode),
    _speed("Prefill, tokens/s", models, lambda model: model.prefill),
  ]
  return tuple(row for row in rows if any(cell.value for cell in row.cells))


def notes(rows: Sequence[Row]) -> tuple[str, ...]:
  """What the rows' notes say, each once, in the order of their marks."""
  return tuple(dict.fromkeys(row.note for row in rows if row.note))


def marked(row: Row, all_notes: Sequence[str]) -> str:
  """A row's label with the mark of its note."""
  return f"{row.label}\u00a0{wording.mark(all_notes.index(row.note))}" if row.note else row.label


def _perplexity(models: Sequence[Measured], protocol: str) -> Row:
  def value(model: Measured) -> float | None:
    return dict(model.perplexity).get(protocol)

  return _row("Held-out perplexity", models, value, wording.number, wording.ratio, protocol)


def _capability(models: Sequence[Measured]) -> Row:
  asked = dict.fromkeys(model.capability_protocol for model in models if model.capability is not None)
  note = "; ".join(filter(None, asked))
  return _row("Small tasks solved", models, lambda model: model.capability, wording.percent, wording.ratio, note)


def _further(models: Sequence[Measured]) -> list[Row]:
  """Rows of what further suites say, as they say it."""
  by_model = [{name: Cell(words) for name, words, _ in model.figures} for model in models]
  notes = {name: protocol for model in models for name, _, protocol in model.figures}
  return [Row(name, tuple(own.get(name, Cell("")) for own in by_model), note) for name, note in notes.items()]


def _speed(label: str, models: Sequence[Measured], value: Callable[[Measured], float | None]) -> Row:
  measured = [model.speed_protocol for model in models if value(model) is not None and model.speed_protocol]
  return _row(label, models, value, wording.number, wording.ratio, "; ".join(dict.fromkeys(measured)))


def _row(
  label: str,
  models: Sequence[Measured],
  value: Callable[[Measured], float | None],
  words: Callable[[float], str],
  against: Callable[[float, float], str],
  note: str = "",
) -> Row:
  base = next((value(model) for model in models if model.name == "original"), None)
  cells = []
  for model in models:
    own = value(model)
    against_original = "" if model.name == "original" or own is None or base is None else against(own, base)
    cells.append(Cell("" if own is None else words(own), against_original))
  return Row(label, tuple(cells), note)
