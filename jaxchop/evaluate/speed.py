"""How fast models read a prompt and write tokens, measured side by side in one run.

Shapes: B rows, T prompt tokens, V vocabulary.
"""

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxchop.compiler import Program
from jaxchop.errors import UsageError
from jaxchop.evaluate.spread import Spread, spread
from jaxchop.heap import peak_bytes
from jaxchop.model.cache import Cache, decode, prefill
from jaxchop.model.llama import Llama
from jaxchop.progress import stage


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Speed:
  """One model at one batch and length; tokens are those of all rows, and a second's are of the median time."""

  layers: int
  batch: int
  prompt_tokens: int
  new_tokens: int
  # Prompt tokens a second, from the ids to the logits after the last one; to all logits where no token is written.
  prefill_tokens_per_second: float
  # New tokens a second, greedy, after that prompt; 0 where none is written.
  decode_tokens_per_second: float
  # New tokens a second from the ids to the last new token; prompt tokens where none is written.
  tokens_per_second: float
  # Seconds of the prompt, of writing, and of both together.
  prefill: Spread
  decode: Spread | None
  latency: Spread
  # Arguments, results and temporaries of the larger of both programs, as the compiler lays them out.
  memory_bytes: int
  # Seconds that compiling both programs took.
  compile_seconds: float
  # What was measured, in words.
  protocol: str


@dataclasses.dataclass(frozen=True, slots=True)
class _Programs:
  """What one model is measured with: `read()`, and `write(*what read returned)` where tokens are written."""

  read: Callable[[], Any]
  write: Callable[..., Any] | None
  memory_bytes: int
  compile_seconds: float


def compare_speed(
  models: Mapping[str, Llama],
  *,
  batch: int = 1,
  prompt_tokens: int = 128,
  new_tokens: int = 32,
  repeats: int = 3,
  warm_up: int = 1,
) -> dict[str, Speed]:
  """Returns each model's speed; after a warm-up the models take turns, so that drift of the machine hits all alike.

  Every new token is read as well, the last one too. Without new tokens a pass computes the logits of the whole prompt
  and keeps nothing. Raises UsageError when a count is too small.
  """
  counts = {"batch": batch, "prompt_tokens": prompt_tokens, "new_tokens": new_tokens, "repeats": repeats}
  for name, count in counts.items():
    if count < (least := int(name != "new_tokens")):
      raise UsageError(f"{name} is {count}; a speed needs at least {least}")
  if warm_up < 0:
    raise UsageError(f"warm_up is {warm_up}; give 0 or more")
  programs, seconds = {}, {name: ([], []) for name in models}
  with stage("speed", len(models) * (1 + warm_up + repeats), "passes") as bar:
    for name, model in models.items():
      programs[name] = _compile(model, batch, prompt_tokens, new_tokens)
      bar.advance(note=f"{name} compiled")
    for repeat in range(-warm_up, repeats):
      for name, program in programs.items():
        taken = _turn(program)
        for all_of_them, one in zip(seconds[name], taken, strict=True):
          all_of_them += [one] if repeat >= 0 else []
        bar.advance(note=f"{name}: {sum(taken):.3f} s")
  return {
    name: _speed(model, counts, programs[name], *seconds[name], protocol=_protocol(model, counts, warm_up))
    for name, model in models.items()
  }


def _speed(
  model: Llama,
  counts: Mapping[str, int],
  programs: _Programs,
  reading: list[float],
  writing: list[float],
  protocol: str,
) -> Speed:
  batch, prompt_tokens, new_tokens, _ = counts.values()
  prefill, decode = spread(reading), spread(writing) if new_tokens else None
  latency = spread([sum(both) for both in zip(reading, writing, strict=True)])
  return Speed(
    layers=len(model.layers),
    batch=batch,
    prompt_tokens=prompt_tokens,
    new_tokens=new_tokens,
    prefill_tokens_per_second=batch * prompt_tokens / prefill.median,
    decode_tokens_per_second=batch * new_tokens / decode.median if decode else 0.0,
    tokens_per_second=batch * (new_tokens or prompt_tokens) / latency.median,
    prefill=prefill,
    decode=decode,
    latency=latency,
    memory_bytes=programs.memory_bytes,
    compile_seconds=programs.compile_seconds,
    protocol=protocol,
  )


def _compile(model: Llama, batch: int, prompt_tokens: int, new_tokens: int) -> _Programs:
  """Returns the compiled programs of a model, on random tokens."""
  ids_BT = jax.random.randint(jax.random.key(0), (batch, prompt_tokens), 0, model.config.vocab_size)
  start = time.perf_counter()
  reader, *writer = (program.compile() for program in lowered(model, ids_BT, new_tokens))
  return _Programs(
    read=lambda: reader(model, ids_BT),
    write=(lambda *state: writer[0](model, *state)) if writer else None,
    memory_bytes=max(_planned_bytes(program) for program in (reader, *writer)),
    compile_seconds=time.perf_counter() - start,
  )


def lowered(model: Llama, ids_BT: Any, new_tokens: int, device: jax.Device | None = None) -> tuple[Any, ...]:
  """Returns lowered programs, of arrays or shapes on a device: read(model, ids) and write(model, *what that gives).

  The second writes `new_tokens` greedy tokens a row into the cache that it is given, and is not there for none.
  """
  if not new_tokens:
    return (Program(lambda model, ids_BT: model(ids_BT, layout="unrolled")).lower(model, ids_BT, device=device),)

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
  writer = Program(write, donate_argnames=("logits_BV", "cache"))
  return Program(read).lower(model, ids_BT, device=device), writer.lower(model, *after, device=device)


def _turn(programs: _Programs) -> tuple[float, float]:
  """Returns the seconds of reading and of writing, once."""
  reading, after = _timed(programs.read)
  return reading, _timed(programs.write, *after)[0] if programs.write else 0.0


def _timed(run: Callable[..., Any], *arguments: Any) -> tuple[float, Any]:
  start = time.perf_counter()
  result = jax.block_until_ready(run(*arguments))
  return time.perf_counter() - start, result


def _planned_bytes(program: Any) -> int:
  plan = program.memory_analysis()
  held = plan.argument_size_in_bytes + plan.output_size_in_bytes - plan.alias_size_in_bytes
  return held + plan.temp_size_in_bytes


def peak_memory() -> dict[str, Any]:
  """Returns the most bytes held so far, of a device where it counts them, else of this process, and which it is."""
  stats = jax.local_devices()[0].memory_stats() or {}
  if "peak_bytes_in_use" in stats:
    return {"bytes": stats["peak_bytes_in_use"], "of": "the device's arrays and programs, of all models together"}
  return {"bytes": peak_bytes(), "of": "this process, with all models loaded; the device does not count its own"}


def _protocol(model: Llama, counts: Mapping[str, int], warm_up: int) -> str:
  device = jax.devices()[0]
  rounds = f"{warm_up} warm-up rounds" if warm_up != 1 else "a warm-up"
  wrote = f"then {counts['new_tokens']} greedy tokens" if counts["new_tokens"] else "logits of all, no cache"
  return (
    f"{counts['batch']} x {counts['prompt_tokens']} random prompt tokens, {wrote}; "
    f"{model.embedding.dtype} on {device.device_kind}; median of {counts['repeats']} after {rounds}, models in turn"
  )
