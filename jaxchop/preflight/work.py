"""How many operations the matrix products of a traced program take, all devices together, what it repeats included.

A program is walked as JAX holds it, before any compiler: the same count for every platform and mesh.
"""

import math
from collections.abc import Iterator
from typing import Any

_KERNEL = "pallas_call"


def product_flops(jaxpr: Any) -> int:
  """Returns the operations of a jaxpr's matrix products; of branches the dearest counts, of a while loop one turn.

  Of a hand-written kernel, which is one for causal attention, blocks behind the diagonal count as not run.
  """
  total = 0
  for equation in jaxpr.eqns:
    if equation.primitive.name == "dot_general":
      total += _of_product(equation)
    elif equation.primitive.name == "cond":
      total += max(product_flops(branch.jaxpr) for branch in equation.params["branches"])
    elif equation.primitive.name == _KERNEL:
      total += _of_kernel(equation)
    else:
      total += _times(equation) * sum(map(product_flops, _inner(equation)))
  return total


def kernel_flops(jaxpr: Any) -> int:
  """Returns the part of `product_flops` that is done by hand-written kernels."""
  total = 0
  for equation in jaxpr.eqns:
    if equation.primitive.name == _KERNEL:
      total += _of_kernel(equation)
    elif equation.primitive.name == "cond":
      total += max(kernel_flops(branch.jaxpr) for branch in equation.params["branches"])
    else:
      total += _times(equation) * sum(map(kernel_flops, _inner(equation)))
  return total


def _of_kernel(equation: Any) -> int:
  *outer, blocks = equation.params["grid_mapping"].grid
  return math.prod(outer) * (blocks + 1) * product_flops(equation.params["jaxpr"]) // 2


def _of_product(equation: Any) -> int:
  ((contracted, _), _) = equation.params["dimension_numbers"]
  left = equation.invars[0].aval.shape
  return 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[axis] for axis in contracted)


def _times(equation: Any) -> int:
  """Returns how often what stands inside runs: in a loop as often as it turns, on devices on each of them."""
  match equation.primitive.name:
    case "scan":
      return equation.params["length"]
    case "shard_map":
      mesh, (axes,) = equation.params["mesh"], (v for k, v in equation.params.items() if k.endswith("manual_axes"))
      return math.prod(mesh.shape[axis] for axis in axes)
  return 1


def _inner(equation: Any) -> Iterator[Any]:
  for value in equation.params.values():
    if hasattr(value, "eqns"):
      yield value
    elif hasattr(value, "jaxpr") and hasattr(value.jaxpr, "eqns"):
      yield value.jaxpr
