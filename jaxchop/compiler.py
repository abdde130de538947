"""`jax.jit` where logits and losses are read off: on a CPU, with the more exact of XLA's two product libraries.

The default one there rounds about twice as coarsely: SmolLM2's logits, up to 20, come out 1.6e-4 from float64's with it
and 0.5e-4 with the other, where torch's own float32 is 0.5e-4 away. A whole forward pass took as long with either.
A training step, and the sweep over removals with its many heads, are faster with the default and keep it.
"""

import functools
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import jax

R = TypeVar("R")

_EXACT = {"xla_cpu_experimental_ynn_fusion_type": ""}


@functools.cache
def compiler_options() -> dict[str, str]:
  """Returns what `jax.jit(function, compiler_options=…)` takes for exact float32 products on this process's devices.

  Empty where there is nothing to say: on a GPU or TPU, or to a compiler that has no such choice.
  """
  if jax.default_backend() != "cpu":
    return {}
  try:
    jax.jit(lambda: 0, compiler_options=_EXACT)()
  except jax.errors.JaxRuntimeError:
    return {}
  return dict(_EXACT)


class Program(Generic[R]):
  """A jitted function; the devices are asked for their options at its first call, not where it is defined."""

  def __init__(self, function: Callable[..., R], **options: Any):
    self._function, self._options = function, options
    functools.update_wrapper(self, function)

  @functools.cached_property
  def _jitted(self) -> Any:
    return jax.jit(self._function, compiler_options=compiler_options(), **self._options)

  def __call__(self, *args: Any, **kwargs: Any) -> R:
    return self._jitted(*args, **kwargs)

  def lower(self, *args: Any) -> Any:
    """Returns the lowered program of these arguments, which may be abstract."""
    return self._jitted.lower(*args)

  @property
  def compiled(self) -> int:
    """How many programs there are so far: one for each set of shapes and static arguments."""
    return self._jitted._cache_size()
