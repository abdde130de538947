"""Kernels in four bits: NormalFloat codes by blocks of 64, whose scales are themselves codes of eight bits.

The scheme of QLoRA (arXiv 2305.14314, sections 3 and appendix E) and of bitsandbytes: a block is 64 weights that follow
one another on the way into one output, its scale their largest magnitude; scales, less their mean, go in blocks of 256
as an eight-bit dynamic type (arXiv 1511.04561, arXiv 2110.02861). 4.13 bits a weight in all.
Shapes: I inputs, O outputs, J = I / 64 blocks of an output, N = O * J scales, padded to P blocks of 256.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import qwix
from flax import nnx

from jaxchop.model.placement import placed, spec_of

BLOCK, _SCALES = 64, 256


class Nf4(nnx.Module):
  """A kernel in four bits: `kernel[...]` is its value in float32, whatever the model computes in."""

  def __init__(self, kernel_IO: jax.Array):
    """Raises ValueError where the inputs cannot be cut into blocks."""
    if len(kernel_IO) % BLOCK:
      raise ValueError(f"a kernel of {len(kernel_IO)} inputs cannot be cut into blocks of {BLOCK}")
    rounded = qwix.quantize(kernel_IO, "nf4", tiled_axes={0: BLOCK}, channelwise_axes=(1,))
    low_HO, high_HO = (rounded.qvalue[half::2].astype(jnp.uint8) for half in range(2))
    self.codes = nnx.Param(low_HO | high_HO << 4)
    # Not qwix's scales, which are 1 where a block is all zeros. One output after the other, as in bitsandbytes.
    scale_JO = jnp.abs(kernel_IO.astype(jnp.float32)).reshape(-1, BLOCK, kernel_IO.shape[1]).max(axis=1)
    scale_N = scale_JO.T.reshape(-1)
    offset = jnp.mean(scale_N)
    scale_PS = jnp.pad(scale_N - offset, (0, -len(scale_N) % _SCALES)).reshape(-1, _SCALES)
    absmax_P = jnp.max(jnp.abs(scale_PS), axis=1)
    share_PS = scale_PS / jnp.maximum(absmax_P, 1e-38)[:, None]
    table = dynamic_map()
    self.scales = nnx.Param(jnp.searchsorted((table[1:] + table[:-1]) / 2, share_PS).astype(jnp.uint8))
    self.absmax, self.offset = nnx.Param(absmax_P), nnx.Param(offset)

  def __getitem__(self, everything: object) -> jax.Array:
    parts = (self.codes[...], self.scales[...], self.absmax[...], self.offset[...])
    return placed(_value, spec_of(parts[0]), *parts)


def _value(codes_HO: jax.Array, scales_PS: jax.Array, absmax_P: jax.Array, offset: jax.Array) -> jax.Array:
  inputs, outputs = 2 * codes_HO.shape[0], codes_HO.shape[1]
  code_IO = jnp.stack([codes_HO & 15, codes_HO >> 4], axis=1).reshape(inputs, outputs).astype(jnp.uint4)
  scale_PS = jnp.asarray(dynamic_map())[scales_PS] * absmax_P[:, None] + offset
  scale_JO = scale_PS.reshape(-1)[: inputs // BLOCK * outputs].reshape(outputs, -1).T
  return qwix.dequantize(qwix.QArray(code_IO, scale_JO, None, "nf4"))


@functools.cache
def dynamic_map() -> np.ndarray:
  """Returns the 256 values of the signed eight-bit dynamic type, rising.

  Of seven bits behind the sign, leading zeros are a decimal exponent and the rest a linear fraction of .1 to 1.
  """
  values = [0.0, 1.0]
  for exponent in range(7):
    edges = np.linspace(0.1, 1, 2**exponent + 1)
    values += [sign * 10.0 ** (exponent - 6) * mean for mean in (edges[1:] + edges[:-1]) / 2 for sign in (1, -1)]
  return np.sort(np.array(values, np.float32))
