"""Linear layers whose kernel stays as it is and is changed by a product of two thin ones: LoRA and DoRA.

Sources: LoRA, arXiv 2106.09685; DoRA, arXiv 2402.09353, with the norms held constant (section 4.3); both as peft
computes them. Shapes: B batch, T sequence, M = B * T, I inputs, O outputs, R rank.
"""

import zlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec

from jaxchop.model.llama import PRODUCT, Linear, Llama
from jaxchop.model.nf4 import Nf4
from jaxchop.model.placement import exact_product, gathered, merged, parted, product, spec_of


class Adapted(nnx.Module):
  """x @ (kernel + scale * a @ b), plus a bias; with a magnitude each output's column is scaled to that length.

  A kernel in four bits is made whole where it is used, in the backward pass anew. Without a and b it is only that.
  """

  def __init__(self, kernel: Any, bias: Any, *, scale: float, dropout: float):
    self.kernel, self.bias = kernel, bias
    self.a: Any = nnx.data(None)
    self.b: Any = nnx.data(None)
    self.magnitude: Any = nnx.data(None)
    # Random bits a row of the batch [B, 2]; None where nothing is left out.
    self.noise: Any = nnx.data(None)
    self.scale, self.dropout = scale, dropout

  def __call__(self, x_BTI: jax.Array) -> jax.Array:
    x_MI = merged(x_BTI, 1)
    y_MO = _through(x_MI, self.kernel)
    if self.a is not None:
      change_MO = self.scale * product(
        self._of_thinned(x_BTI, lambda x_MI, a: product(x_MI, a[...]), self.a), self.b[...]
      )
      if self.magnitude is not None:
        share_O = gathered(self.share_O(), x_MI).astype(x_MI.dtype)
        base_MO = y_MO if self.noise is None else self._of_thinned(x_BTI, _through, self.kernel)
        change_MO = (share_O - 1) * base_MO + share_O * change_MO
      y_MO = y_MO + change_MO
    y_BTO = parted(y_MO, x_BTI, 1)
    return checkpoint_name(y_BTO if self.bias is None else y_BTO + self.bias[...], PRODUCT)

  def share_O(self) -> jax.Array:  # noqa: N802
    """Returns what each output is multiplied by, magnitude over norm, in float32; no gradient goes into the norms.

    The norms of kernel + scale * a @ b come without that sum: three products as thin as the rank.
    """
    w_IO, a_IR, b_RO = (jax.lax.stop_gradient(part[...]) for part in (self.kernel, self.a, self.b))
    spec = spec_of(w_IO)
    outputs = None if spec is None else spec[1]
    places = [None if spec is None else PartitionSpec(*axes) for axes in ((None, outputs), (None, None), (outputs,))]
    wa_RO = exact_product("IR,IO->RO", a_IR, w_IO, places[0])
    aa_RS = exact_product("IR,IS->RS", a_IR, a_IR, places[1])
    aab_RO = exact_product("RS,SO->RO", aa_RS, b_RO, places[0])
    b_RO = b_RO.astype(jnp.float32)
    square_O = jnp.sum(jnp.square(w_IO.astype(jnp.float32)), axis=0)
    square_O += jnp.sum(b_RO * (2 * self.scale * wa_RO + self.scale**2 * aab_RO), axis=0)
    return self.magnitude[...].astype(jnp.float32) * jax.lax.rsqrt(square_O)

  def merged_kernel(self) -> jax.Array:
    """Returns the kernel of a plain layer that does the same, but for what is left out in training."""
    w_IO = self.kernel[...]
    if self.a is None:
      return w_IO
    w_IO = w_IO + self.scale * product(self.a[...], self.b[...])
    if self.magnitude is None:
      return w_IO
    return w_IO * (self.magnitude[...] * jax.lax.rsqrt(jnp.sum(jnp.square(w_IO), axis=0)))

  def _of_thinned(self, x_BTI: jax.Array, function: Callable[..., jax.Array], weights: Any) -> jax.Array:
    """Returns function(x_MI, weights) of x without what is left out, which the backward pass makes anew of x."""
    if self.noise is None:
      return function(merged(x_BTI, 1), weights)
    return jax.checkpoint(lambda x_BTI, weights: function(merged(self._thinned(x_BTI), 1), weights))(x_BTI, weights)

  def _thinned(self, x_BTI: jax.Array) -> jax.Array:
    """Returns x without a share of its elements, the others larger by as much; a row's are its own noise's choice.

    An element is kept by a hash of its place, under the row's two words. jax.random's bits for every projection of
    every layer took two thirds of the compilation and a third of the memory of a step.
    """
    _, length, inputs = x_BTI.shape
    place_TI = jnp.arange(length, dtype=jnp.uint32)[:, None] * inputs + jnp.arange(inputs, dtype=jnp.uint32)
    one_B, other_B = self.noise[...].T
    bits_BTI = _hashed(_hashed(place_TI ^ one_B[:, None, None]) ^ other_B[:, None, None])
    kept_BTI = bits_BTI < np.uint32((1 - self.dropout) * (1 << 32))
    spec = spec_of(x_BTI)
    kept_BTI = kept_BTI if spec is None else jax.sharding.reshard(kept_BTI, spec)
    return jnp.where(kept_BTI, x_BTI / (1 - self.dropout), 0)


def _hashed(x: jax.Array) -> jax.Array:
  """Returns MurmurHash3's finaliser of 32 bits: each bit of x turns about half of the result's."""
  x = (x ^ x >> 16) * np.uint32(0x85EBCA6B)
  x = (x ^ x >> 13) * np.uint32(0xC2B2AE35)
  return x ^ x >> 16


def linears(model: Llama) -> Iterator[tuple[str, Any]]:
  """Yields (dotted name, module) of every linear layer of the blocks, adapted or not."""
  for index, block in enumerate(model.layers):
    for kind in ("attention", "mlp"):
      for name, value in vars(getattr(block, kind)).items():
        if isinstance(value, (Linear, Adapted)):
          yield f"layers.{index}.{kind}.{name}", value


def adapted(model: Llama, change: Callable[[str, Any], Any]) -> Llama:
  """Returns the model with each linear layer of its blocks as `change` makes it, given its dotted name."""
  new = jax.tree.map(lambda leaf: leaf, model)
  for name, linear in [*linears(new)]:
    _, index, kind, own = name.split(".")
    setattr(getattr(new.layers[int(index)], kind), own, change(name, linear))
  return new


def noisy(model: Llama, noise_B2: jax.Array) -> Llama:
  """Returns the model in training: every adapter leaves out its own share of each row's inputs."""

  def noisier(name: str, linear: Any) -> Any:
    if isinstance(linear, Adapted) and linear.a is not None:
      keys_B = jax.random.wrap_key_data(noise_B2)
      own_B = jax.vmap(lambda key: jax.random.fold_in(key, zlib.crc32(name.encode())))(keys_B)
      linear.noise = nnx.Variable(jax.random.key_data(own_B))
    return linear

  return adapted(model, noisier)


def _through(x_MI: jax.Array, kernel: Any) -> jax.Array:
  if not isinstance(kernel, Nf4):
    return product(x_MI, kernel[...])
  # Kept is the kernel in four bits, not its value.
  return jax.checkpoint(lambda x_MI, kernel: product(x_MI, kernel[...].astype(x_MI.dtype)))(x_MI, kernel)
