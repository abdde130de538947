"""What recovery minimises: the next-token cross-entropy of the model run in its compute dtype.

Shapes: B batch, T sequence, S = T + 1 tokens of a packed record.
"""

import jax
from flax import nnx

from jaxchop.data.batch import Batch
from jaxchop.model.adapter import noisy
from jaxchop.model.chunks import CHUNK
from jaxchop.model.computing import cast
from jaxchop.model.llama import Layout, Llama, Remat, hidden
from jaxchop.model.loss import next_token_loss
from jaxchop.parallel.sharding import in_stripes


def summed_loss(
  model: Llama,
  batch: Batch,
  *,
  compute_dtype: str = "float32",
  layout: Layout = "scan",
  remat: Remat = "dots",
  z_loss: float = 0.0,
  chunk: int = CHUNK,
) -> jax.Array:
  """Returns the weighted sum of negative log-likelihoods, in nats, as a float32 scalar.

  `z_loss` is in its gradient only, see next_token_loss; logits exist of `chunk` tokens at a time.

  The weights are cast to `compute_dtype` here, so gradients come back in the dtype of the master weights.
  """
  model = computing(model, batch, compute_dtype, layout)
  ids_BT, target_BT, weight_BT, segments_BT = inputs(batch)
  x_BTD = model.norm(hidden(model, ids_BT, segments_BT=segments_BT, layout=layout, remat=remat))
  return next_token_loss(x_BTD, model.head_DV(), target_BT, weight_BT, chunk=chunk, z_loss=z_loss)


def computing(model: Llama, batch: Batch, compute_dtype: str, layout: Layout) -> Llama:
  """Returns the model as a step computes with it: cast, and with what this batch leaves out.

  Layers that are not stacked are cast where they are used (model/computing.py): they follow the residual stream.
  """
  layers = model.layers
  model = cast(model, compute_dtype)
  if layout == "unrolled":
    model.layers = nnx.List(layers)
  return model if batch.noise is None else noisy(model, batch.noise)


def inputs(batch: Batch) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array | None]:
  """Returns ids_BT, target_BT, weight_BT and segments_BT or None, positions spread over devices as the mesh says."""
  ids_BT, target_BT, weight_BT = map(in_stripes, (batch.ids[:, :-1], batch.ids[:, 1:], batch.weight))
  return ids_BT, target_BT, weight_BT, None if batch.segments is None else batch.segments[:, :-1]
