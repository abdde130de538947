"""What the loss's gradient tells of a layer: by how much the loss would change if its weights went to zero.

Shapes: N calibration windows, T tokens, L layers, C sampled coordinates of a layer.
"""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxchop.model.llama import PRODUCTS, Block, Llama, positions
from jaxchop.model.loss import next_token_loss
from jaxchop.model.rope import rotation
from jaxchop.prune.weights import counted

# Coordinates of a layer that are kept from every window, so that its products can be summed in another order later.
_SAMPLED = 4096


class Products(NamedTuple):
  """The products w * dL/dw of one window, L being its mean nats per token, in three sums."""

  # Sum over the layer's weights, with sign [L].
  signed: jax.Array
  # Sum of the absolute values [L].
  absolute: jax.Array
  # Some of the products, the same ones in every window [L, C].
  sample: jax.Array


def taylor_products(
  rest: Llama, stack: Block, ids_T: jax.Array, real_T: jax.Array, total: dict[str, jax.Array]
) -> tuple[dict[str, jax.Array], Products]:
  """Returns `total` plus the window's products w * dL/dw, and their sums; to be jitted with `total` donated.

  `stack` holds the layers, see subset.py, `rest` the model around them. Source: the first-order Taylor criterion of
  LLM-Pruner (arXiv 2305.11627) as Shortened LLaMA uses it for whole blocks (arXiv 2402.02834, eq. 3).
  """
  turn = rotation(rest.config, positions(ids_T[None, :-1]))

  # Of one window of some hundred tokens, the results of a layer's products are smaller than its weights' gradient.
  @partial(jax.checkpoint, policy=PRODUCTS)
  def body(x_1TD: jax.Array, layer: Block) -> tuple[jax.Array, None]:
    return layer(x_1TD, turn), None

  def loss(stack: Block) -> jax.Array:
    x_1TD = jax.lax.scan(body, rest.embed(ids_T[None, :-1]), stack)[0]
    weight_1T = (real_T[1:] / jnp.sum(real_T[1:]))[None]
    return next_token_loss(rest.norm(x_1TD), rest.head_DV(), ids_T[None, 1:], weight_1T)

  slopes = counted(jax.grad(loss)(stack))
  products = {name: w.astype(jnp.float32) * slopes[name] for name, w in counted(stack).items()}
  sums = Products(
    signed=sum((_over_layers(jnp.sum, part) for part in products.values()), start=jnp.zeros(())),
    absolute=absolute_sums(products),
    sample=_sampled(products),
  )
  return jax.tree.map(jnp.add, total, products), sums


def no_products(stack: Block) -> dict[str, jax.Array]:
  """Returns the total before the first window: zeros."""
  return {name: jnp.zeros(w.shape, jnp.float32) for name, w in counted(stack).items()}


def absolute_sums(products: dict[str, jax.Array]) -> jax.Array:
  """Returns the sum of |products| of each layer [L]."""
  return sum((_over_layers(jnp.sum, jnp.abs(part)) for part in products.values()), start=jnp.zeros(()))


def _over_layers(reduce: Any, part: jax.Array) -> jax.Array:
  return reduce(part.reshape(len(part), -1), axis=1)


def _sampled(products: dict[str, jax.Array]) -> jax.Array:
  """Returns every so manieth product [L, C]; the step has no common divisor with a row, so it walks all columns."""
  size = sum(math.prod(part.shape[1:]) for part in products.values())
  picked = []
  for part in products.values():
    step = max(1, size // _SAMPLED)
    while math.gcd(step, part.shape[-1]) > 1:
      step += 1
    picked.append(part.reshape(len(part), -1)[:, ::step])
  return jnp.concatenate(picked, axis=1)
