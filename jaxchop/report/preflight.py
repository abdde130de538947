"""What preflight found, in words: fits or not, memory by part, time, money."""

from collections.abc import Iterator, Mapping
from typing import Any

from jaxchop.wording import count, duration, number, percent, size

Result = Mapping[str, Any]
_PARTS = {
  "parameters": "trained parameters",
  "frozen": "frozen parameters",
  "optimizer": "optimizer",
  "activations": "kept for the backward pass",
  "temporaries": "other temporaries",
}


def rows(result: Result) -> Iterator[tuple[str, str]]:
  """Yields names and values, a line each."""
  mesh = ", ".join(f"{axis} {length}" for axis, length in result["mesh"].items()) or "one device"
  slices = f"{result['slices']} × " if result["slices"] > 1 else ""
  yield "model", f"{result['model']}, {result['layers']} layers"
  yield "slice", f"{slices}{result['topology']}: {result['chips']} chips of {result['device_kind']}; {mesh}"
  yield "step", _step(result["settings"])
  hbm = result["hbm"]
  yield "fits", f"{'yes' if result['fits'] else 'NO'}: {_gib(hbm['peak_bytes'])} of {_gib(hbm['limit_bytes'])} a device"
  for part, words in _PARTS.items():
    if hbm[part]:
      yield f"  {words}", size(hbm[part])
  flops = result["flops_per_step"]
  yield "FLOP a step", f"{flops:.3g}, {percent(result['remat_overhead'])} above the model's {_model_flops(result)}"
  if "step_seconds_estimate" in result:
    yield from _time(result)
  yield "compiled in", duration(result["compile_seconds"]) + (", an earlier time" if result["cached"] else "")


def _step(settings: Result) -> str:
  return (
    f"{settings['batch_size']} × {settings['seq_len']} tokens in {settings['accumulate']} micro-batches, trains "
    f"{settings['trainable']}, remat {settings['remat']}, {settings['layout']}, {settings['compute_dtype']}"
  )


def _model_flops(result: Result) -> str:
  return f"{result['model_flops_per_step']:.3g}"


def _time(result: Result) -> Iterator[tuple[str, str]]:
  for kind, sent in result["collectives"].items():
    yield f"  {kind}", f"{size(sent)} a device"
  yield "over ICI, DCN", f"{size(result['links']['ici'])}, {size(result['links']['dcn'])} a device"
  yield "seconds a step", f"{number(result['step_seconds_estimate'])}, estimated"
  for name, seconds in result["seconds_by_resource"].items():
    yield f"  {name}", f"{number(seconds)} s"
  yield "bound by", result["bound_by"]
  yield "MFU at most", percent(result["mfu_bound"])
  yield "tokens a second", count(result["tokens_per_second"])
  price = f", {result['price']:,.0f} at {result['price_per_chip_hour']:g} a chip-hour" if "price" in result else ""
  yield (
    f"{count(result['tokens'])} tokens",
    (f"{duration(3600 * result['hours'])}, {number(result['chip_hours'])} chip-hours{price}"),
  )


def in_words(result: Result) -> Iterator[str]:
  """Yields what a person should know of these figures."""
  over = result["hbm"]["peak_bytes"] - result["hbm"]["limit_bytes"]
  if not result["fits"]:
    yield f"Too much by {_gib(over)} a device."
  if result.get("kernels_without_estimate"):
    yield "Hand-written kernels (attention) carry no estimate: their time comes on top."
  yield "Memory is the compiler's plan; seconds are its estimates and the published links, to compare settings by."


def _gib(number_of_bytes: float) -> str:
  return f"{number_of_bytes / 2**30:.2f} GiB"
