"""What recovery minimises: the next-token cross-entropy of the model run in its compute dtype.

Shapes: B batch, T sequence, S = T + 1 tokens of a packed record.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxchop.data.batch import Batch
from jaxchop.model.adapter import noisy
from jaxchop.model.llama import Layout, Llama, Remat, hidden
from jaxchop.model.loss import next_token_loss
from jaxchop.model.nf4 import EXACT
from jaxchop.model.tree import dotted
from jaxchop.parallel.sharding import in_stripes


def summed_loss(
  model: Llama,
  batch: Batch,
  *,
  compute_dtype: str = "float32",
  layout: Layout = "scan",
  remat: Remat = "dots",
  z_loss: float = 0.0,
) -> jax.Array:
  """Returns the weighted sum of negative log-likelihoods, in nats, as a float32 scalar.

  `z_loss` is in its gradient only, see next_token_loss.

  The weights are cast to `compute_dtype` here, so gradients come back in the dtype of the master weights.
  """
  model = computing(model, batch, compute_dtype, layout)
  ids_BT, target_BT, weight_BT, segments_BT = inputs(batch)
  x_BTD = model.norm(hidden(model, ids_BT, segments_BT=segments_BT, layout=layout, remat=remat))
  return next_token_loss(x_BTD, model.head_DV(), target_BT, weight_BT, z_loss=z_loss)


def computing(model: Llama, batch: Batch, compute_dtype: str, layout: Layout) -> Llama:
  """Returns the model as a step computes with it: cast, and with what this batch leaves out."""
  model = jax.tree_util.tree_map_with_path(partial(_computing, compute_dtype), model)
  if batch.noise is not None:
    model = noisy(model, batch.noise)
  return jax.tree.map(_settled, model) if layout == "unrolled" else model


def inputs(batch: Batch) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array | None]:
  """Returns ids_BT, target_BT, weight_BT and segments_BT or None, positions spread over devices as the mesh says."""
  ids_BT, target_BT, weight_BT = map(in_stripes, (batch.ids[:, :-1], batch.ids[:, 1:], batch.weight))
  return ids_BT, target_BT, weight_BT, None if batch.segments is None else batch.segments[:, :-1]


def _computing(dtype: str, path: tuple[Any, ...], p: jax.Array) -> jax.Array:
  """Returns a parameter as it is computed with: codes, and what belongs to their scales, stay."""
  exact = not jnp.issubdtype(p.dtype, jnp.floating) or dotted(path).rpartition(".")[2] in EXACT
  return p if exact else p.astype(dtype)


@jax.custom_vjp
def _settled(weight: jax.Array) -> jax.Array:
  """Returns the weight itself; its gradient is finished before anything uses it.

  Without this, the compiler of a sharded program keeps every layer's unreduced gradient until the optimizer runs.
  """
  return weight


_settled.defvjp(lambda weight: (weight, None), lambda _, grad: (jax.lax.optimization_barrier(grad),))
