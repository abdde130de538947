"""A batch in chunks of tokens, so that their logits over the whole vocabulary never exist all at once.

A chunk takes as many tokens of every device, so that rows and positions spread over devices stay where they are; the
vocabulary may be spread too.
Shapes: M tokens, C those of a chunk, D width, V vocabulary, S parts of the tokens, one a device.
"""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jaxchop.model.placement import exact_product, lookup, parts_of, spec_of
from jaxchop.model.scatter import scattered

# Tokens whose logits a device holds at once: large enough for full matrix speed, small against the weights themselves.
CHUNK = 1024


def logits(w_VD: jax.Array, x_CD: jax.Array) -> jax.Array:
  """Returns logits_VC in float32: with the vocabulary first, XLA on a CPU is faster at all products with them."""
  spec, rows = spec_of(w_VD), spec_of(x_CD)
  out = None if spec is None or rows is None else PartitionSpec(spec[0], rows[0])
  return exact_product("VD,CD->VC", w_VD, x_CD, out)


def einsum(letters: str, a: jax.Array, b: jax.Array, like: jax.Array) -> jax.Array:
  """Returns the product, summed in float32 and spread over devices as `like` is."""
  return exact_product(letters, a, b, spec_of(like))


def target_logit(head_VD: jax.Array, x_CD: jax.Array, target_C: jax.Array) -> jax.Array:
  """Returns one logit a token, from the head's own column: in the logits it may lie on any device."""
  return jnp.sum(x_CD.astype(jnp.float32) * lookup(head_VD, target_C).astype(jnp.float32), axis=-1)


def is_target(logits_VC: jax.Array, target_C: jax.Array) -> jax.Array:
  """Returns the mask_VC that is true at each token's target."""
  return jax.lax.broadcasted_iota(target_C.dtype, logits_VC.shape, 0) == target_C


def no_gradient(head_DV: jax.Array, x_MD: jax.Array) -> jax.Array:
  """Returns the head's gradient before the first chunk, float32.

  That is grad_SVD, what each of S parts of the tokens has of it, where these are spread over devices; else grad_VD.
  """
  spec, rows = spec_of(head_DV), spec_of(x_MD)
  if spec is None or rows is None:
    return jnp.zeros_like(head_DV.T, jnp.float32)
  shape = parts_of(x_MD, 0), *head_DV.shape[::-1]
  return jnp.zeros(shape, jnp.float32, out_sharding=PartitionSpec(rows[0], spec[1], None))


def gradients(
  slope_VC: jax.Array, w_VD: jax.Array, x_CD: jax.Array, grad: jax.Array | None
) -> tuple[jax.Array | None, jax.Array]:
  """Returns the head's gradient so far with that of a chunk, None where none is kept, and the chunk's own grad_CD."""
  if grad is not None and grad.ndim == 2:
    grad = grad + einsum("VC,CD->VD", slope_VC, x_CD, grad)
  elif grad is not None:
    parts, size = len(grad), len(x_CD) // len(grad)
    slope_VSC = slope_VC.reshape(len(slope_VC), parts, size)
    grad = grad + einsum("VSC,SCD->SVD", slope_VSC, x_CD.reshape(parts, size, x_CD.shape[1]), grad)
  # Of the two orders, the faster one on one core of a CPU; on two cores there is no difference.
  return grad, einsum("VD,VC->DC", w_VD, slope_VC, x_CD.T).T


def whole_gradient(grad: jax.Array, head_DV: jax.Array) -> jax.Array:
  """Returns grad_DV of all chunks, summed over devices and spread as the head is."""
  if grad.ndim == 2:
    return grad.T.astype(head_DV.dtype)
  spec, there = spec_of(head_DV), spec_of(grad)
  assert spec is not None and there is not None
  rows = PartitionSpec(there[0], None)

  def on_a_device(grad_SVD: jax.Array) -> jax.Array:
    return scattered(grad_SVD[0].T.astype(head_DV.dtype), spec, rows)

  return jax.shard_map(on_a_device, in_specs=there, out_specs=spec, check_vma=False)(grad)


def split(a_M: jax.Array, most: int) -> jax.Array:
  """Cuts tokens into chunks of at most `most` a device; the last one is filled with zeros (weight 0, target 0)."""
  parts = parts_of(a_M, 0)
  held = len(a_M) // parts
  chunks = -(-held // most)
  size = -(-held // chunks)
  a_SM = a_M.reshape(parts, held, *a_M.shape[1:])
  a_SM = jnp.pad(a_SM, [(0, 0), (0, chunks * size - held)] + [(0, 0)] * (a_M.ndim - 1))
  return jnp.moveaxis(a_SM.reshape(parts, chunks, size, *a_M.shape[1:]), 1, 0).reshape(chunks, -1, *a_M.shape[1:])


def joined(chunks: jax.Array, a_M: jax.Array) -> jax.Array:
  """Undoes `split` of `a_M`; what follows the tokens may be anything."""
  parts = parts_of(a_M, 0)
  a_SM = jnp.moveaxis(chunks.reshape(len(chunks), parts, -1, *chunks.shape[2:]), 0, 1)
  a_SM = a_SM.reshape(parts, -1, *chunks.shape[2:])[:, : len(a_M) // parts]
  return a_SM.reshape(len(a_M), *chunks.shape[2:])
