"""Models side by side as a table for the terminal: of a run, and of whatever was evaluated."""

from collections.abc import Mapping, Sequence
from typing import Any

import rich.console
import rich.table
import rich.text

from jaxchop import wording
from jaxchop.report.cliff import is_cliff, solves
from jaxchop.report.comparison import Cell, Row, comparison, marked, notes
from jaxchop.report.fields import Fields
from jaxchop.report.goodput import in_one_line, read_goodput
from jaxchop.report.measures import measures
from jaxchop.report.results import read_models


def summary_table(summary: Mapping[str, Any]) -> rich.console.Group:
  """The models of a summary.json side by side, with protocols, tokens and time spent underneath."""
  models = read_models(summary)
  return _table([model.name for model in models], comparison(models), _spent(summary))


def measures_table(models: Sequence[Mapping[str, Any]]) -> rich.console.Group:
  """The figures of evaluated models side by side, with protocols and what the numbers mean underneath."""
  words = ["± is one standard error."]
  if len(models) > 1:
    words.append(
      "In brackets: more or less than the first model on the same text or items, sample by sample; a perplexity is "
      "e^x times as high, x the nats."
    )
  return _table([model["path"] for model in models], measures(models), [*words, *_cliffs(models)])


def _cliffs(models: Sequence[Mapping[str, Any]]) -> list[str]:
  """Returns a sentence for each model whose writing has fallen off from the first one's."""
  solved = {model["path"]: model["suites"].get("capability", {}).get("score") for model in models}
  (original, before), *others = solved.items()
  if before is None:
    return []
  return [solves(name, now, original, before) for name, now in others if now is not None and is_cliff(now, before)]


def _table(names: Sequence[str], rows: Sequence[Row], words: Sequence[str]) -> rich.console.Group:
  footnotes = notes(rows)
  # Names and protocols are text from outside: as Text they cannot be read as markup.
  marks = [f"{wording.mark(index)} {note}" for index, note in enumerate(footnotes)]
  table = rich.table.Table(box=rich.box.SIMPLE_HEAD)
  table.add_column("")
  for name in names:
    table.add_column(rich.text.Text(name), justify="right", overflow="fold")
  for row in rows:
    table.add_row(rich.text.Text(marked(row, footnotes)), *(_cell(cell) for cell in row.cells))
  # Not the table's own caption, which is no wider than it.
  return rich.console.Group(table, rich.text.Text("\n".join([*marks, *words])))


def _cell(cell: Cell) -> rich.text.Text:
  text = rich.text.Text(cell.value or "–")
  if not cell.against:
    return text
  # A difference with its error is as wide as a column: a line of its own, not broken anywhere.
  lead = "\n" if "±" in cell.against else " "
  return text.append(f"{lead}({cell.against})", style="dim")


def _spent(summary: Mapping[str, Any]) -> list[str]:
  """Returns what a run took and gained, in lines."""
  file = Fields("summary.json", summary)
  lines = []
  tokens, closed, seconds = file.integer("tokens"), file.number("gap_closed"), file.pairs("seconds")
  if tokens:
    lines.append(f"Recovered with {wording.count(tokens)} tokens.")
  if (spent := read_goodput(file.child("recovery"))) is not None:
    lines.append(f"Recovery: {in_one_line(spent)}")
  if closed is not None:
    lines.append(f"Closed {wording.percent(closed)} of the gap in log perplexity that pruning opened.")
  if seconds:
    stages = ", ".join(f"{stage} {wording.duration(spent)}" for stage, spent in seconds)
    lines.append(f"Time: {wording.duration(sum(spent for _, spent in seconds))} ({stages}).")
  return lines
