"""Speeds in a table and in words: models side by side, layers removed against the ideal, a drafter with its target."""

from collections.abc import Iterator, Mapping
from typing import Any

from jaxchop.wording import percent, size

Row = Mapping[str, Any]

HEAD = (
  "model",
  "layers",
  "prefill\ntokens/s",
  "decode\ntokens/s",
  "latency",
  "against\nthe first",
  "memory",
)
DRAFT_HEAD = ("drafted", "taken", "tokens a pass", "tokens/s", "against the target", "rounds that took 0, 1, …")


def point(row: Row) -> str:
  """Returns the batch and the lengths that a row is of."""
  return f"{row['batch']} x {row['prompt_tokens']} + {row['new_tokens']}"


def cells(row: Row, first: Row) -> list[str]:
  """Returns what stands in a row beside the first model's row of that batch and length."""
  decoded = f"{row['decode_tokens_per_second']:.1f}{_within(row['decode'])}" if row["decode"] else "-"
  pairs = ("prefill", "decode") if row["decode"] else ("prefill",)
  return [
    row["path"],
    str(row["layers"]),
    f"{row['prefill_tokens_per_second']:.1f}{_within(row['prefill'])}",
    decoded,
    _milliseconds(row["latency"]["median"]),
    ",\u00a0".join(f"{first[name]['median'] / row[name]['median']:.2f}x" for name in pairs),
    size(row["memory_bytes"]),
  ]


def _within(spread: Row) -> str:
  """Returns how far the interval of a median reaches to its further side, in percent."""
  further = max(spread["high"] - spread["median"], spread["median"] - spread["low"])
  return f" ±\u00a0{100 * further / spread['median']:.0f}\u00a0%"


def in_words(result: Row) -> Iterator[str]:
  """Yields what the table cannot hold: the gain of removed layers, the memory, and how it all was measured."""
  rows = result["models"]
  for row in rows:
    if (gain := row["gain"]) is not None:
      yield f"{row['path']}, {point(row)}: {_gained(gain)}"
  if any(row["gain"] for row in rows):
    yield (
      "ideal by bytes: a token takes time in proportion to the weights and the cache that its step reads, the head's "
      "too; by layers: as if the layers were all"
    )
  yield f"memory: what the compiler plans; at most {size(result['memory']['bytes'])} in {result['memory']['of']}"
  yield "±: the further end of the median's 95 % interval, or of all repeats where there are fewer than six"
  yield from filter(None, [result["paper"]])
  yield from dict.fromkeys(row["protocol"] for row in rows)


def _gained(gain: Row) -> str:
  return (
    f"{gain['removed']} layers fewer decode {gain['decode']:.2f}x as fast (ideal {gain['ideal_by_bytes']:.2f}x by "
    f"bytes, {gain['ideal_by_layers']:.2f}x by layers); each saves {100 * gain['saved_per_layer']:.2f} % of a token's "
    f"time, {percent(gain['of_bytes'])} of the ideal by bytes, {percent(gain['of_layers'])} by layers; a layer takes "
    f"{_milliseconds(gain['layer_seconds'])}, all else {_milliseconds(gain['fixed_seconds'])}"
  )


def draft_cells(row: Row) -> list[str]:
  """Returns what stands in the row of one draft length."""
  gain = row["gain"]
  return [
    str(row["drafted"]),
    f"{row['accepted']:.2f}",
    f"{row['tokens_per_pass']:.2f}",
    f"{row['tokens_per_second']:.1f}",
    f"{gain['median']:.2f}x ({gain['low']:.2f} to {gain['high']:.2f})",
    " ".join(map(str, row["rounds"])),
  ]


def draft_in_words(result: Row) -> Iterator[str]:
  """Yields whether the text is the target's own, how fast the target is alone, and how it all was measured."""
  yield f"{result['target']} alone: {result['target_tokens_per_second']:.1f} tokens/s; drafter {result['draft']}"
  apart = {row["drafted"]: row["differing"] for row in result["lengths"] if row["differing"]}
  if not apart:
    yield "every text is the target's greedy one, token by token"
  for drafted, places in apart.items():
    where = ", ".join(f"prompt {number} from token {at}" for number, at in places.items())
    yield f"NOT the target's greedy text with {drafted} drafted: {where}; two logits lay closer than rounding, or a bug"
  yield "taken: drafted tokens of a round that are the target's own; tokens a pass: those and the target's next one"
  yield f"memory: at most {size(result['memory']['bytes'])} in {result['memory']['of']}"
  yield result["protocol"]


def _milliseconds(seconds: float) -> str:
  return f"{1000 * seconds:.1f}\u00a0ms" if abs(seconds) < 10 else f"{seconds:.1f} s"
