"""What preflight found, in words: fits or not, memory by part, time, money."""

from collections.abc import Iterator, Mapping
from typing import Any

from jaxchop.wording import count, duration, percent, size

Result = Mapping[str, Any]
_PARTS = {
  "parameters": "trained parameters",
  "frozen": "frozen parameters",
  "optimizer": "optimizer",
  "activations": "kept for the backward pass",
  "temporaries": "other temporaries",
}
# Of several settings side by side.
HEAD = ("", "fits", "GiB", "s a step", "MFU", "tokens/s")


def rows(result: Result) -> Iterator[tuple[str, str]]:
  """Yields names and values of one setting, a line each."""
  slices = f"{result['slices']} × " if result["slices"] > 1 else ""
  if "refused" in result:
    yield "model", result["model"]
    yield "slice", f"{slices}{result['topology']}"
    yield "fits", f"NO: {result['refused']}"
    return
  mesh = ", ".join(f"{axis} {length}" for axis, length in result["mesh"].items()) or "one device"
  yield "model", f"{result['model']}, {result['layers']} layers"
  yield "slice", f"{slices}{result['topology']}: {result['chips']} chips of {result['device_kind']}; {mesh}"
  yield "step", _step(result["settings"])
  hbm = result["hbm"]
  takes = f"{_gib(hbm['peak_bytes'])} of {_gib(hbm['limit_bytes'])} a device"
  yield "fits", f"yes, its compiler placed all of it: {takes} at the peak" if result["fits"] else f"NO: {takes}"
  yield "HBM at the peak", _gib(hbm["peak_bytes"])
  for part, words in _PARTS.items():
    if hbm[part]:
      yield f"  {words}", size(hbm[part])
  more, flops = percent(result["remat_overhead"]), result["model_flops_per_step"]
  yield "FLOP a step", f"{result['flops_per_step']:.3g}, {more} above the model's {flops:.3g}"
  if "step_seconds_estimate" in result:
    yield from _time(result)
  yield "compiled in", duration(result["compile_seconds"]) + (", an earlier time" if result["cached"] else "")
  for name, found in result.get("programs", {}).items():
    needs = f"{_gib(found['hbm']['peak_bytes'])} of {_gib(found['hbm']['limit_bytes'])}"
    takes = f", {found['seconds_estimate']:.3g} s{' a token' if name == 'decode' else ''}" if found["fits"] else ""
    yield name.replace("_", "-"), f"{'fits' if found['fits'] else 'does NOT fit'}: {needs} a device{takes}"


def _step(settings: Result) -> str:
  return (
    f"{settings['batch_size']} × {settings['seq_len']} tokens in {settings['accumulate']} micro-batches, trains "
    f"{settings['trainable']}, remat {settings['remat']}, {settings['layout']}, {settings['compute_dtype']}"
  )


def _time(result: Result) -> Iterator[tuple[str, str]]:
  for kind, sent in result["collectives"].items():
    yield f"  {kind}", f"{size(sent)} a device"
  yield "over ICI, DCN", f"{size(result['links']['ici'])}, {size(result['links']['dcn'])} a device"
  yield "seconds a step", f"{result['step_seconds_estimate']:.4g}, estimated"
  for name, seconds in result["seconds_by_resource"].items():
    yield f"  {name}", f"{seconds:.4g}"
  yield "bound by", result["bound_by"]
  yield "MFU at most", percent(result["mfu_bound"])
  yield "tokens a second", count(result["tokens_per_second"])
  price = f", {result['price']:,.0f} at {result['price_per_chip_hour']:g} a chip-hour" if "price" in result else ""
  spent = f"{duration(3600 * result['hours'])}, {result['chip_hours']:,.1f} chip-hours{price}"
  yield f"{count(result['tokens'])} tokens", spent


def tables(result: Result) -> Iterator[list[tuple[str, ...]]]:
  """Yields the rows of tables with HEAD: of the nearest setting that fits, of those tried, of other layer counts."""
  if near := result.get("nearest"):
    yield [_cells(near, "nearest that fits")]
  if tried := result.get("settings_tried"):
    yield [_cells(each, each["change"]) for each in tried]
  if sweep := result.get("sweep"):
    yield [_cells(each, f"{each['removed']} layers removed") for each in sweep]


def _cells(result: Result, name: str) -> tuple[str, ...]:
  hbm = result["hbm"]
  own = name, "yes" if result["fits"] else "NO", f"{hbm['peak_bytes'] / 2**30:.1f}"
  if "step_seconds_estimate" not in result:
    return *own, "", "", ""
  rate = count(result["tokens_per_second"])
  return *own, f"{result['step_seconds_estimate']:.4g}", percent(result["mfu_bound"]), rate


def in_words(result: Result) -> Iterator[str]:
  """Yields what a person should know of these figures."""
  if "hbm" in result and not result["fits"]:
    yield f"Too much by {_gib(result['hbm']['peak_bytes'] - result['hbm']['limit_bytes'])} a device."
  if result.get("idle"):
    yield f"{result['idle']} of {result['devices']} devices have nothing to do: batch and mesh do not divide among all."
  if "nearest" in result:
    near = result["nearest"]
    yield f"This fits: {near['change']}" if near else "No setting near it fits: take a larger slice or fewer layers."
  if result.get("kernels_without_estimate"):
    yield "Hand-written kernels (attention) carry no estimate: a step counts them at the peak, and they take longer."
  yield "Memory is the compiler's plan; seconds are its estimates and the published links, to compare settings by."


def _gib(number_of_bytes: float) -> str:
  return f"{number_of_bytes / 2**30:.2f} GiB"
