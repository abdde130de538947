"""The comparison of original, pruned and recovered as a table for the terminal."""

from collections.abc import Mapping
from typing import Any

import rich.table
import rich.text

from jaxchop import wording
from jaxchop.report.comparison import Cell, comparison, marked, notes
from jaxchop.report.fields import Fields
from jaxchop.report.goodput import in_one_line, read_goodput
from jaxchop.report.results import read_models


def summary_table(summary: Mapping[str, Any]) -> rich.table.Table:
  """The models of a summary.json side by side, with protocols, tokens and time spent underneath."""
  models = read_models(summary)
  rows = comparison(models)
  footnotes = notes(rows)
  # Names and protocols are text from outside: as Text they cannot be read as markup.
  table = rich.table.Table(
    box=rich.box.SIMPLE_HEAD, caption=_caption(summary, footnotes), caption_justify="left", caption_style="none"
  )
  table.add_column("")
  for model in models:
    table.add_column(model.name, justify="right", overflow="fold")
  for row in rows:
    table.add_row(rich.text.Text(marked(row, footnotes)), *(_cell(cell) for cell in row.cells))
  return table


def _cell(cell: Cell) -> rich.text.Text:
  text = rich.text.Text(cell.value or "–")
  return text.append(f" ({cell.against})", style="dim") if cell.against else text


def _caption(summary: Mapping[str, Any], footnotes: tuple[str, ...]) -> rich.text.Text:
  file = Fields("summary.json", summary)
  lines = [f"{wording.mark(index)} {note}" for index, note in enumerate(footnotes)]
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
  return rich.text.Text("\n".join(lines))
