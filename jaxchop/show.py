"""What a person sees of a command's result when it is not asked for as JSON: tables and a few lines of text."""

import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any

import rich.box
import rich.console
import rich.table
import rich.text

from jaxchop.layers import spans
from jaxchop.report import expected, preflight, speeds, ways
from jaxchop.report.fields import Fields
from jaxchop.report.goodput import in_one_line, read_goodput
from jaxchop.report.table import measures_table, summary_table
from jaxchop.wording import count, size

Result = Mapping[str, Any]


def show(command: str, result: Result) -> None:
  """Prints the result of a command on standard output."""
  _SHOW[command](rich.console.Console(), result)


def _run(console: rich.console.Console, result: Result) -> None:
  console.print(summary_table(result))
  _loaders(console, result["check"]["targets"])
  _say(console, f"export  {result['export']}", f"report  {result['report']}")


def _inspect(console: rich.console.Console, result: Result) -> None:
  table = _table("", "")
  shape, tokenizer = result["architecture"], result["tokenizer"]
  heads = f"{shape['heads']} query, {shape['kv_heads']} key/value, width {shape['head_dim']}"
  rope = shape["rope"] if shape["rope"]["kind"] != "default" else {"theta": shape["rope"]["theta"]}
  turns = ", ".join(f"{key} {value}" for key, value in rope.items() if value is not None)
  rows = {
    "model": result["model"],
    "source": " ".join(filter(None, (result["source"], result["revision"]))),
    "layers": result["layers"],
    "width": f"{shape['width']}, MLP {shape['mlp_width']}",
    "heads": heads,
    "vocabulary": f"{shape['vocab_size']:,}, {'tied' if shape['tied'] else 'untied'} head",
    "positions": f"{shape['max_positions']:,}; RoPE {turns}",
    "biases": f"attention {'yes' if shape['attention_bias'] else 'no'}, MLP {'yes' if shape['mlp_bias'] else 'no'}",
    "parameters": f"{result['parameters']:,} ({result['parameters_per_layer']:,} a layer)",
    **{f"  {part}": f"{number:,}" for part, number in result["parameters_by_part"].items()},
    "bytes": size(result["bytes"]),
    "dtype": ", ".join(result["dtypes"]),
    "tokenizer": f"{tokenizer['class']}, {tokenizer['vocabulary']:,} tokens, EOS {tokenizer['eos']}"
    + (", chat template" if tokenizer["chat_template"] else ""),
    "files": ", ".join(result["files"]),
  }
  for name, value in rows.items():
    table.add_row(name, rich.text.Text(str(value)))
  console.print(table)


def _score(console: rich.console.Console, result: Result) -> None:
  if result["compare"]:
    return _compare(console, result)
  table = _table("criterion", f"drops {result['count']}", "same set", "order of removal", justify="left")
  table.columns[0].no_wrap = True
  for name in result["criteria"]:
    chosen = result["chosen"].get(name)
    if chosen is None:
      table.add_row(name, "not scored so far", "", "")
      continue
    ties = [*chosen["indistinct"], False]
    order = " ".join(f"{layer}{' ~' if tie else ''}" for layer, tie in zip(chosen["order"], ties, strict=True))
    same = "" if chosen["same_set"] is None else f"{100 * chosen['same_set']:.0f} %"
    table.add_row(name, spans(chosen["drop"]), same, order)
  console.print(table)
  _say(
    console,
    "order: of each layer by itself, the first goes first; ~ stands between two whose order may be chance",
    "same set: share of resampled calibration texts that drop the same layers",
  )
  if (baseline := result["baseline"]) is not None:
    low, high = (math.exp(value) for value in baseline["interval"])
    _say(console, f"perplexity of the whole model {math.exp(baseline['nll']):.3f} [{low:.3f}, {high:.3f}]")
  _say(console, *(f"{name}: {found['definition']}" for name, found in result["criteria"].items()))


def _compare(console: rich.console.Console, result: Result) -> None:
  """Prints what each criterion drops, a layer a row, and how far each two agree."""
  chosen = result["chosen"]
  names = {name: str(place + 1) for place, name in enumerate(chosen)}
  table = _table("layer", *names.values(), dense=True)
  layers = len(next(iter(result["criteria"].values()))["per_layer"])
  for layer in range(layers):
    table.add_row(str(layer), *("x" if layer in found["drop"] else "·" for found in chosen.values()))
  console.print(table)
  agree = _table("", *names.values(), dense=True)
  for name, place in names.items():
    agree.add_row(place, *(f"{100 * share:.0f}" for share in result["agreement"][name].values()))
  console.print(agree)
  _say(console, *(f"{place:>2}  {name}" for name, place in names.items()))
  _say(console, f"x: among the {result['count']} layers dropped; numbers: % of common layers among those either drops")


def _prune(console: rich.console.Console, result: Result) -> None:
  _say(console, f"{result['source']['name']}: {result['words']}", f"by {result['criterion']['definition']}")
  if "folder" in result:
    _say(console, f"{count(result['parameters'])} parameters, {size(result['bytes'])} in {result['folder']}")


def _recover(console: rich.console.Console, result: Result) -> None:
  _say(
    console,
    f"{result['steps']} steps, {count(result['tokens'])} tokens in {result['seconds']:.0f} s "
    f"({result['tokens_per_second']:.0f} tokens/s, compiled in {result['compile_seconds']:.0f} s)",
  )
  if result["first_loss"] is not None:
    _say(console, f"loss {result['first_loss']:.4f} -> {result['last_loss']:.4f}")
  if (spent := read_goodput(Fields("recovery", result))) is not None:
    _say(console, in_one_line(spent))


def _evaluate(console: rich.console.Console, result: Result) -> None:
  console.print(measures_table(result["models"]))


def _export(console: rich.console.Console, result: Result) -> None:
  _say(console, f"wrote {result['folder']}")
  if "check" in result:
    _check(console, result["check"])
  else:
    _say(console, f"adapters of {result['parameters']:,} parameters for {result['base']}")


def _check(console: rich.console.Console, result: Result) -> None:
  table = _table("", "", "")
  for line in result["lines"]:
    table.add_row(line["name"], _verdict(line["ok"]), rich.text.Text(line["detail"]))
  console.print(table)
  _loaders(console, {line["name"]: {"loads": line["ok"], "why": line["detail"]} for line in result["targets"]})
  _say(console, "sound" if result["ok"] else "NOT sound")


def _report(console: rich.console.Console, result: Result) -> None:
  _say(console, result["report"])


def _ways(console: rich.console.Console, result: Result) -> None:
  for budget in dict.fromkeys(row["budget"] for row in result["rows"]):
    mine = [row for row in result["rows"] if row["budget"] == budget]
    table = _table(*ways.HEAD)
    for row in mine:
      table.add_row(*map(rich.text.Text, ways.cells(row, mine[0]["way"])))
    _say(console, f"At equal {'FLOPs' if budget == 'flops' else budget}:")
    console.print(table)
  before = ", ".join(f"{name} {result[name]['perplexity']:.2f}" for name in ("original", "pruned"))
  _say(console, f"The plan {result['plan']}.", f"Before any training: {before}. {result['protocol']}")
  _say(console, f"{result['folder']}: compare.md, compare.png, compare.json")


def _forecast(console: rich.console.Console, result: Result) -> None:
  table = _table("tokens", "perplexity", "expected", "95 % interval", "takes")
  for point in (*result["probes"], *result["expected"]):
    measured = f"{point['perplexity']:.2f}" if "perplexity" in point else ""
    low, high = point["interval"]
    spent = expected.work(result, point["tokens"])
    table.add_row(count(point["tokens"]), measured, f"{point['expected']:.2f}", f"{low:.2f} to {high:.2f}", spent)
  console.print(table)
  _say(console, *expected.in_words(result), f"{result['folder']}: forecast.json, forecast.png")


def _preflight(console: rich.console.Console, result: Result) -> None:
  table = _table("", "")
  for name, value in preflight.rows(result):
    table.add_row(name, rich.text.Text(value))
  console.print(table)
  for others in preflight.tables(result):
    side = _table(*preflight.HEAD, dense=True)
    for cells in others:
      side.add_row(*map(rich.text.Text, cells))
    console.print(side)
  _say(console, *preflight.in_words(result))


def _cache(console: rich.console.Console, result: Result) -> None:
  table = _table("source", "documents", "bytes")
  for source in result["sources"]:
    table.add_row(rich.text.Text(source["name"]), f"{source['documents']:,}", size(source["bytes"]))
  console.print(table)
  apart = "documents apart" if result["segments"] else "documents run together"
  apart += ", answers alone predicted" if result["targets"] else ""
  _say(
    console,
    f"{result['folder']}: {result['records']:,} records of {result['seq_len']:,} tokens, {apart}",
    f"{result['tokens']:,} tokens in {result['files']} files, {size(result['bytes'])}; "
    f"{result['dropped_tokens']:,} fit in no record",
    f"tokenizer {result['tokenizer_sha256'][:16]}, cache {result['digest'][:16]}",
  )


def _data_build(console: rich.console.Console, result: Result) -> None:
  _cache(console, result)
  _say(console, f"built in {result['seconds']:.0f} s")


def _data_inspect(console: rich.console.Console, result: Result) -> None:
  _cache(console, result)
  _say(console, "every byte is as it was written")


def _speed(console: rich.console.Console, result: Result) -> None:
  if "draft" in result:
    return _drafting(console, result)
  for point, rows in itertools.groupby(result["models"], speeds.point):
    table, (first, *others) = _table(*speeds.HEAD, dense=True), rows
    for row in (first, *others):
      table.add_row(*map(rich.text.Text, speeds.cells(row, first)))
    _say(console, "", f"{point} tokens", "")
    console.print(table)
  _say(console, *speeds.in_words(result))


def _drafting(console: rich.console.Console, result: Result) -> None:
  table = _table(*speeds.DRAFT_HEAD)
  for row in result["lengths"]:
    table.add_row(*speeds.draft_cells(row))
  console.print(table)
  _say(console, *speeds.draft_in_words(result))


def _generate(console: rich.console.Console, result: Result) -> None:
  for found in result["continuations"]:
    console.print(rich.text.Text(found["prompt"], style="dim").append(found["continuation"], style="not dim"))


def _loaders(console: rich.console.Console, targets: Mapping[str, Mapping[str, Any]]) -> None:
  for name, found in targets.items():
    console.print(rich.text.Text.assemble(f"{name}: ", _verdict(found["loads"]), f" {found['why']}"))


def _verdict(ok: bool | None) -> rich.text.Text:
  return rich.text.Text(*{True: ("yes", "green"), False: ("NO", "bold red"), None: ("not compared", "yellow")}[ok])


def _table(*columns: str, justify: rich.console.JustifyMethod = "right", dense: bool = False) -> rich.table.Table:
  """Returns a table whose columns but the first are set as `justify` says; `dense` leaves no more room than needed.

  Dense tables of all criteria, and of speeds, fit into 80 columns.
  """
  box, padding = (None, (0, 1, 0, 0)) if dense else (rich.box.SIMPLE_HEAD, (0, 1))
  table = rich.table.Table(box=box, padding=padding, show_header=any(columns))
  for index, column in enumerate(columns):
    table.add_column(column, overflow="fold", justify=justify if index and any(columns) else "left")
  return table


def _say(console: rich.console.Console, *lines: str) -> None:
  for line in lines:
    console.print(rich.text.Text(line))


_SHOW: dict[str, Callable[[rich.console.Console, Result], None]] = {
  "run": _run,
  "inspect": _inspect,
  "score": _score,
  "prune": _prune,
  "recover": _recover,
  "evaluate": _evaluate,
  "compare": _ways,
  "forecast": _forecast,
  "preflight": _preflight,
  "export": _export,
  "check": _check,
  "report": _report,
  "data build": _data_build,
  "data inspect": _data_inspect,
  "speed": _speed,
  "generate": _generate,
}
