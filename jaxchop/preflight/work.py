"""How many operations the matrix products of a traced program take, all devices together, what it repeats included.

A program is walked as JAX holds it, before any compiler: the same count for every platform and mesh.
"""

import math
from collections.abc import Iterator
from typing import Any


def product_flops(jaxpr: Any) -> int:
  """Returns the operations of a jaxpr's matrix products; of branches the dearest counts, of a while loop one turn."""
  total = 0
  for equation in jaxpr.eqns:
    if equation.primitive.name == "dot_general":
      total += _of_product(equation)
    elif equation.primitive.name == "cond":
      total += max(product_flops(branch.jaxpr) for branch in equation.params["branches"])
    else:
      total += _times(equation) * sum(map(product_flops, _inner(equation)))
  return total


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
