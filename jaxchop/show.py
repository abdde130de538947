"""What a person sees of a command's result when it is not asked for as JSON: tables and a few lines of text."""

from collections.abc import Callable, Mapping
from typing import Any

import rich.box
import rich.console
import rich.table
import rich.text

from jaxchop.report.table import summary_table
from jaxchop.report.wording import count, size

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
  criteria = result["criteria"]
  table = _table("layer", *criteria)
  rank = {name: sorted(range(len(c["per_layer"])), key=c["per_layer"].__getitem__) for name, c in criteria.items()}
  for layer in range(len(next(iter(criteria.values()))["per_layer"])):
    cells = []
    for name, found in criteria.items():
      low, high = found["interval"][layer]
      place = rank[name].index(layer) + 1
      cells.append(f"{found['per_layer'][layer]:.4g}  [{low:.4g}, {high:.4g}]  {place:>3}.")
    table.add_row(str(layer), *map(rich.text.Text, cells))
  console.print(table)
  _say(console, "value, 95 % interval over calibration windows, and place in the order of removal (1. goes first)")
  _say(console, *(f"{name}: {found['definition']}" for name, found in criteria.items()))


def _prune(console: rich.console.Console, result: Result) -> None:
  _say(console, f"{result['source']['name']}: {result['words']}", f"by {result['criterion']['definition']}")
  if "folder" in result:
    _say(console, f"{count(result['parameters'])} parameters, {size(result['bytes'])} in {result['folder']}")


def _recover(console: rich.console.Console, result: Result) -> None:
  _say(
    console,
    f"{result['steps']} steps, {count(result['tokens'])} tokens in {result['seconds']:.0f} s "
    f"({result['tokens_per_second']:.0f} tokens/s, compiled in {result['compile_seconds']:.0f} s)",
    f"loss {result['first_loss']:.4f} -> {result['last_loss']:.4f}",
  )


def _evaluate(console: rich.console.Console, result: Result) -> None:
  models = result["models"]
  table = _table("model", "perplexity", "± (standard error)", "bits per byte", "tokens")
  for model in models:
    ((_, value),) = model["perplexity"].items()
    error = value * model["nll_error"]
    table.add_row(
      rich.text.Text(model["path"]),
      f"{value:.3f}",
      f"{error:.3f}",
      f"{model['bits_per_byte']:.4f}",
      f"{model['tokens']:,}",
    )
  console.print(table)
  _say(console, *dict.fromkeys(protocol for model in models for protocol in model["perplexity"]))


def _export(console: rich.console.Console, result: Result) -> None:
  _say(console, f"wrote {result['folder']}")
  _check(console, result["check"])


def _check(console: rich.console.Console, result: Result) -> None:
  table = _table("", "", "")
  for line in result["lines"]:
    table.add_row(line["name"], _verdict(line["ok"]), rich.text.Text(line["detail"]))
  console.print(table)
  _loaders(console, {line["name"]: {"loads": line["ok"], "why": line["detail"]} for line in result["targets"]})
  _say(console, "sound" if result["ok"] else "NOT sound")


def _report(console: rich.console.Console, result: Result) -> None:
  _say(console, result["report"])


def _speed(console: rich.console.Console, result: Result) -> None:
  models = result["models"]
  table = _table("model", "prefill tokens/s", "decode tokens/s", "against the first", "compiled in")
  for model in models:
    prefill, decode = (model[f"{kind}_tokens_per_second"] for kind in ("prefill", "decode"))
    against = [
      f"{model[key] / models[0][key]:.2f}x" for key in ("prefill_tokens_per_second", "decode_tokens_per_second")
    ]
    table.add_row(
      rich.text.Text(model["path"]),
      f"{prefill:.1f}",
      f"{decode:.1f}",
      ", ".join(against),
      f"{model['compile_seconds']:.1f} s",
    )
  console.print(table)
  _say(console, *dict.fromkeys(model["protocol"] for model in models))


def _generate(console: rich.console.Console, result: Result) -> None:
  for found in result["continuations"]:
    console.print(rich.text.Text(found["prompt"], style="dim").append(found["continuation"], style="not dim"))


def _loaders(console: rich.console.Console, targets: Mapping[str, Mapping[str, Any]]) -> None:
  for name, found in targets.items():
    console.print(rich.text.Text.assemble(f"{name}: ", _verdict(found["loads"]), f" {found['why']}"))


def _verdict(ok: bool | None) -> rich.text.Text:
  return rich.text.Text(*{True: ("yes", "green"), False: ("NO", "bold red"), None: ("not compared", "yellow")}[ok])


def _table(*columns: str) -> rich.table.Table:
  table = rich.table.Table(box=rich.box.SIMPLE_HEAD, show_header=any(columns))
  for index, column in enumerate(columns):
    table.add_column(column, overflow="fold", justify="right" if index and any(columns) else "left")
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
  "export": _export,
  "check": _check,
  "report": _report,
  "speed": _speed,
  "generate": _generate,
}
