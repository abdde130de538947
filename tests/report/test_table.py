"""The closing table of a run fits a terminal and says how every number was measured."""

import io

import pytest
import rich.console

from jaxchop.report.table import summary_table


def printed(summary: dict, width: int) -> str:
  out = io.StringIO()
  rich.console.Console(file=out, width=width).print(summary_table(summary))
  return out.getvalue().replace("\u00a0", " ")


def test_eighty_columns_hold_every_number_on_one_line(summary):
  lines = printed(summary, 80).splitlines()
  assert max(map(len, lines)) <= 80
  row = next(line for line in lines if "Held-out perplexity" in line)
  assert row.split()[-5:] == ["12.31", "27.63", "(2.24×)", "14.12", "(1.15×)"]
  row = next(line for line in lines if "Parameters" in line)
  assert "134.5 M" in row and "113.3 M (−15.8 %)" in row


def test_protocols_tokens_and_time_stand_below(summary):
  text = " ".join(printed(summary, 80).split())
  assert f"¹ {summary['original']['protocol']}" in text and f"³ {summary['original']['speed_protocol']}" in text
  assert "61,440 tokens" in text and "83 % of the gap" in text and "recover 4 min 23 s" in text


@pytest.mark.parametrize("width", [20, 40, 200])
def test_any_width_works(summary, width):
  assert max(map(len, printed(summary, width).splitlines())) <= width


def test_a_summary_of_a_prune_alone_works(summary):
  text = printed({"original": summary["original"], "pruned": {"layers": 24}}, 80)
  assert "24 (−20.0 %)" in text and "recovered" not in text


def test_brackets_in_a_protocol_are_text_not_markup(summary):
  for name in ("original", "pruned", "recovered"):
    summary[name]["protocol"] = "[red]window[/red] 512 [/]"
  assert "[red]window[/red] 512 [/]" in printed(summary, 80)
