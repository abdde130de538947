"""How fast models read a prompt and write tokens, measured side by side in one run.

Shapes: B rows, T prompt tokens, V vocabulary.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxchop.compiler import Program
from jaxchop.errors import UsageError
from jaxchop.model.cache import Cache, decode, prefill
from jaxchop.model.llama import Llama
from jaxchop.progress import stage


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Speed:
  """Medians of one model's repeats."""

  # Prompt tokens of all rows a second, from the ids to the logits after the last one.
  prefill_tokens_per_second: float
  # New tokens of all rows a second, greedy, after that prompt.
  decode_tokens_per_second: float
  # Seconds that compiling both programs took.
  compile_seconds: float
  # What was measured, in words.
  protocol: str


def compare_speed(
  models: Mapping[str, Llama],
  *,
  batch: int = 1,
  prompt_tokens: int = 128,
  new_tokens: int = 32,
  repeats: int = 3,
) -> dict[str, Speed]:
  """Returns each model's speed; after a warm-up the models take turns, so that drift of the machine hits all alike.

  Raises UsageError when a count is below 1.
  """
  counts = {"batch": batch, "prompt_tokens": prompt_tokens, "new_tokens": new_tokens, "repeats": repeats}
  for name, count in counts.items():
    if count < 1:
      raise UsageError(f"{name} is {count}; a speed needs at least 1")
  runs, compiling = {}, {}
  prefill_seconds = {name: [] for name in models}
  decode_seconds = {name: [] for name in models}
  with stage("speed", len(models) * (repeats + 2), "passes") as bar:
    for name, model in models.items():
      start = time.perf_counter()
      runs[name] = _compile(model, batch, prompt_tokens, new_tokens)
      compiling[name] = time.perf_counter() - start
      bar.advance(note=f"{name} compiled")
    for repeat in range(-1, repeats):
      for name, (read, write) in runs.items():
        reading, after = _timed(read)
        writing, _ = _timed(write, *after)
        if repeat >= 0:
          prefill_seconds[name].append(reading)
          decode_seconds[name].append(writing)
        bar.advance(note=f"{name}: {batch * new_tokens / writing:.1f} tokens/s")
  return {
    name: Speed(
      prefill_tokens_per_second=batch * prompt_tokens / statistics.median(prefill_seconds[name]),
      decode_tokens_per_second=batch * new_tokens / statistics.median(decode_seconds[name]),
      compile_seconds=compiling[name],
      protocol=_protocol(model, counts),
    )
    for name, model in models.items()
  }


def _compile(model: Llama, batch: int, prompt_tokens: int, new_tokens: int) -> tuple[Callable, Callable]:
  """Returns two compiled programs on random tokens: `read()` and `write(*what read returned)`."""
  ids_BT = jax.random.randint(jax.random.key(0), (batch, prompt_tokens), 0, model.config.vocab_size)
  reader, writer = (program.compile() for program in lowered(model, ids_BT, new_tokens))
  return lambda: reader(model, ids_BT), lambda *state: writer(model, *state)


def lowered(model: Llama, ids_BT: Any, new_tokens: int, device: jax.Device | None = None) -> tuple[Any, Any]:
  """Returns two lowered programs, of arrays or shapes on a device: read(model, ids) and write(model, *what that gives).

  The second writes `new_tokens` greedy tokens a row.
  """

  def read(model: Llama, ids_BT: jax.Array) -> tuple[jax.Array, Cache]:
    return prefill(model, ids_BT, slots=ids_BT.shape[1] + new_tokens)

  def write(model: Llama, logits_BV: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
    def step(_: jax.Array, state: tuple[jax.Array, Cache]) -> tuple[jax.Array, Cache]:
      return decode(model, jnp.argmax(state[0], axis=-1), state[1])

    return jax.lax.fori_loop(0, new_tokens, step, (logits_BV, cache))

  after = jax.eval_shape(read, model, ids_BT)
  if device is not None:
    place = jax.sharding.SingleDeviceSharding(device)
    after = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place), after)
  return Program(read).lower(model, ids_BT, device=device), Program(write).lower(model, *after, device=device)


def _timed(run: Callable[..., Any], *arguments: Any) -> tuple[float, Any]:
  start = time.perf_counter()
  result = jax.block_until_ready(run(*arguments))
  return time.perf_counter() - start, result


def _protocol(model: Llama, counts: Mapping[str, int]) -> str:
  device = jax.devices()[0]
  return (
    f"{counts['batch']} x {counts['prompt_tokens']} random prompt tokens, then {counts['new_tokens']} greedy tokens; "
    f"{model.embedding.dtype} on {device.device_kind}; median of {counts['repeats']} after a warm-up, models in turn"
  )
