"""What a compiled training step means to a person: fits or not, memory by part, time, money."""

from collections.abc import Mapping
from typing import Any

from jaxchop.config import EvaluateConfig
from jaxchop.preflight.question import Question


def report(question: Question, found: Mapping[str, Any], price: float | None = None) -> dict[str, Any]:
  """Returns the figures of one setting as plain JSON; bytes are those of one device, `price` is of a chip's hour."""
  config = question.training.config
  tokens = config.batch_size * config.seq_len
  content = {
    "fits": found["fits"],
    "topology": question.topology,
    "slices": question.slices,
    **{name: found[name] for name in ("device_kind", "devices", "idle", "chips", "mesh")},
    "layers": question.training.student.layers,
    "settings": {
      name: getattr(config, name)
      for name in ("trainable", "batch_size", "accumulate", "seq_len", "layout", "remat", "compute_dtype")
    },
    "hbm": hbm(found),
    **{name: found[name] for name in ("flops_per_step", "model_flops_per_step")},
    "remat_overhead": found["flops_per_step"] / found["model_flops_per_step"] - 1,
    "compile_seconds": found["compile_seconds"],
    "trace_seconds": found["trace_seconds"],
    "cached": found["cached"],
    "digest": found["digest"],
  }
  if found["schedule"] is None:
    return content
  return content | _time(found, tokens, config.steps, price)


def program(found: Mapping[str, Any], evaluate: EvaluateConfig, name: str) -> dict[str, Any]:
  """Returns the figures of a program beside the step; of `decode`, the seconds of a token."""
  memory = found["memory"]
  content = {
    "fits": found["fits"],
    "hbm": {"peak_bytes": memory["peak" if found["fits"] else "needed"], "limit_bytes": found["limit"]},
    **{key: found[key] for key in ("compile_seconds", "cached")},
  }
  if found["schedule"] is None:
    return content
  runs = evaluate.new_tokens if name == "decode" else 1
  return content | {"seconds_estimate": sum(found["schedule"]["seconds"].values()) / runs}


def hbm(found: Mapping[str, Any]) -> dict[str, int]:
  """Returns the memory of a device by part; the parts make up `peak_bytes`, the compiler's figure of what is alive.

  Whether a program fits is the compiler's word: its plan has gaps too. Of one that does not fit it tells what is needed
  alone.
  """
  memory, parts = found["memory"], found["parts"]
  peak = memory["peak"] if found["fits"] else memory["needed"]
  limit = found["limit"] if found["fits"] else memory["limit"]
  held = {name: parts[name] for name in ("parameters", "frozen", "optimizer")}
  left = peak - sum(held.values())
  # Of what is kept for the backward pass, the compiler may plan less than the program says.
  activations = max(min(parts["activations"], left), 0)
  return {
    "peak_bytes": peak,
    "limit_bytes": limit,
    **held,
    "activations": activations,
    "temporaries": left - activations,
  }


def _time(found: Mapping[str, Any], tokens: int, steps: int, price: float | None) -> dict[str, Any]:
  schedule = found["schedule"]
  seconds: Mapping[str, float] = schedule["seconds"]
  step = sum(seconds.values())
  hours = steps * step / 3600
  content = {
    "step_seconds_estimate": step,
    "seconds_by_resource": dict(seconds),
    "hidden_seconds": schedule["hidden_seconds"],
    "bound_by": max(seconds, key=lambda name: seconds[name]),
    "collectives": schedule["collectives"],
    "links": schedule["links"],
    "kernels_without_estimate": schedule["kernels_without_estimate"],
    "mfu_bound": found["model_flops_per_step"] / step / found["peak_flops_per_second"],
    "tokens_per_second": tokens / step,
    "tokens": steps * tokens,
    "hours": hours,
    "chip_hours": hours * found["chips"],
  }
  return content if price is None else content | {"price": price * hours * found["chips"], "price_per_chip_hour": price}
