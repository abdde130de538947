"""The Llama family as Flax NNX modules whose layer stack is a plain list.

A module is a pytree: `jax.jit`, `jax.grad` and optax act on it directly, and dropping layers is a slice of the list.
Shapes: B batch, T sequence, S cache slots, D width, F MLP width, N query heads, K key/value heads, H head width,
V vocabulary, L layers. Kernels are [in, out]. Blocks run in the dtype of what is embedded; norms in float32.
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from jaxchop.model import attention
from jaxchop.model.attention import PRODUCT
from jaxchop.model.computing import cast, settled
from jaxchop.model.config import LlamaConfig
from jaxchop.model.heads import in_tiles, join_heads, product_of_heads, product_to_heads, split_heads
from jaxchop.model.placement import lookup, merged, parted, parts_of, product, product_with_rows, spec_of, striped
from jaxchop.model.rope import rotate, rotation
from jaxchop.target import on_cpu

# How a pass walks the list: "scan" stacks it inside the program and compiles one layer, "unrolled" compiles each.
Layout = Literal["scan", "unrolled"]
# What a backward pass finds again of a block, the rest of which it computes anew: everything, the results of matrix
# products ("dots"), the same from the host's memory, or only what entered the block ("full" recomputation).
Remat = Literal["none", "dots", "full", "offload"]
Carry = TypeVar("Carry")
_init = nnx.initializers.normal(0.02)
PRODUCTS = jax.checkpoint_policies.save_only_these_names(PRODUCT)
_POLICIES = {
  "dots": PRODUCTS,
  "full": None,
  "offload": jax.checkpoint_policies.save_and_offload_only_these_names(
    names_which_can_be_saved=[],
    names_which_can_be_offloaded=[PRODUCT],
    offload_src="device",
    offload_dst="pinned_host",
  ),
}


class RMSNorm(nnx.Module):
  """Root-mean-square normalisation in float32, then a learned scale. Source: arXiv 1910.07467."""

  def __init__(self, config: LlamaConfig):
    self.scale = nnx.Param(jnp.ones(config.width))
    self.eps = config.norm_eps

  def __call__(self, x_BTD: jax.Array) -> jax.Array:
    x = x_BTD.astype(jnp.float32)
    x = x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + self.eps)
    return self.scale[...] * x.astype(x_BTD.dtype)


class Linear(nnx.Module):
  """x @ kernel, plus a bias where the family has one."""

  def __init__(self, size_in: int, size_out: int, *, bias: bool, rngs: nnx.Rngs):
    self.kernel = nnx.Param(_init(rngs.params(), (size_in, size_out)))
    self.bias = nnx.Param(jnp.zeros(size_out)) if bias else None

  def __call__(self, x_BTI: jax.Array) -> jax.Array:
    # Two axes, not three: the kernel's gradient is then one matrix product, where XLA on a CPU would first transpose.
    y_BTO = parted(product(merged(x_BTI, 1), self.kernel[...]), x_BTI, 1)
    return self._done(y_BTO)

  def to_heads(self, x_BTI: jax.Array, head_dim: int) -> jax.Array:
    """Returns the result y_BTNH as heads, see heads.py."""
    y_BTNH = product_to_heads(x_BTI, self.kernel[...], head_dim)
    return checkpoint_name(y_BTNH if self.bias is None else y_BTNH + self.bias[...].reshape(-1, head_dim), PRODUCT)

  def of_heads(self, y_BTNH: jax.Array) -> jax.Array:
    """Returns the result y_BTO for heads."""
    return self._done(product_of_heads(y_BTNH, self.kernel[...]))

  def _done(self, y_BTO: jax.Array) -> jax.Array:
    return checkpoint_name(y_BTO if self.bias is None else y_BTO + self.bias[...], PRODUCT)


class Attention(nnx.Module):
  """Projections around attention; how the keys are found is the caller's (`attend`)."""

  def __init__(self, config: LlamaConfig, *, rngs: nnx.Rngs):
    D, N, K, H = config.width, config.heads, config.kv_heads, config.head_dim
    self.q = Linear(D, N * H, bias=config.attention_bias, rngs=rngs)
    self.k = Linear(D, K * H, bias=config.attention_bias, rngs=rngs)
    self.v = Linear(D, K * H, bias=config.attention_bias, rngs=rngs)
    self.o = Linear(N * H, D, bias=config.attention_bias, rngs=rngs)
    self.head_dim = H

  def __call__(
    self, x_BTD: jax.Array, turn: tuple[jax.Array, jax.Array], attend: Callable[..., jax.Array]
  ) -> jax.Array:
    q_BTNH, k_BTKH, v_BTKH = (self._to_heads(part, x_BTD) for part in (self.q, self.k, self.v))
    y_BTNH = attend(rotate(q_BTNH, *turn), rotate(k_BTKH, *turn), v_BTKH)
    return self.o.of_heads(y_BTNH) if self._direct(self.o, x_BTD) else self.o(join_heads(y_BTNH))

  def _to_heads(self, part: Any, x_BTD: jax.Array) -> jax.Array:
    direct = self._direct(part, x_BTD)
    return part.to_heads(x_BTD, self.head_dim) if direct else split_heads(part(x_BTD), self.head_dim)

  def _direct(self, part: Any, x_BTD: jax.Array) -> bool:
    # An adapted layer knows rows alone.
    return in_tiles(x_BTD) and isinstance(part, Linear)


class Mlp(nnx.Module):
  """The gated MLP: down(silu(gate(x)) * up(x))."""

  def __init__(self, config: LlamaConfig, *, rngs: nnx.Rngs):
    self.gate = Linear(config.width, config.mlp_width, bias=config.mlp_bias, rngs=rngs)
    self.up = Linear(config.width, config.mlp_width, bias=config.mlp_bias, rngs=rngs)
    self.down = Linear(config.mlp_width, config.width, bias=config.mlp_bias, rngs=rngs)

  def __call__(self, x_BTD: jax.Array) -> jax.Array:
    # A CPU computes the sigmoid again, forward and backward one pass each: kept, it and what comes of it are two arrays
    # as large as the gate. On a TPU this takes 0.5 ms a layer of Llama-2-7B more, by its compiler.
    gated = jax.checkpoint(_gated) if on_cpu() else _gated
    return self.down(gated(self.gate(x_BTD), self.up(x_BTD)))


def _gated(gate_BTF: jax.Array, up_BTF: jax.Array) -> jax.Array:
  return jax.nn.silu(gate_BTF) * up_BTF


class Block(nnx.Module):
  """One decoder layer: what is dropped, scored and merged."""

  def __init__(self, config: LlamaConfig, *, rngs: nnx.Rngs):
    self.attention_norm = RMSNorm(config)
    self.attention = Attention(config, rngs=rngs)
    self.mlp_norm = RMSNorm(config)
    self.mlp = Mlp(config, rngs=rngs)

  def __call__(
    self,
    x_BTD: jax.Array,
    turn: tuple[jax.Array, jax.Array],
    attend: Callable[..., jax.Array] = attention.causal_attention,
    gate: jax.Array | float = 1.0,
  ) -> jax.Array:
    """Adds both sub-layers to the residual stream; `gate` scales both additions, and 0 equals removal."""
    x_BTD = x_BTD + gate * self.attention(self.attention_norm(x_BTD), turn, attend)
    return x_BTD + gate * self.mlp(self.mlp_norm(x_BTD))


class Llama(nnx.Module):
  """Embedding, a list of blocks, a norm and a head. `len(model.layers)` is the only count of layers there is."""

  def __init__(self, config: LlamaConfig, layers: int, *, rngs: nnx.Rngs):
    self.config = config
    self.embedding = nnx.Param(_init(rngs.params(), (config.vocab_size, config.width)))
    self.layers = nnx.List([Block(config, rngs=rngs) for _ in range(layers)])
    self.norm = RMSNorm(config)
    # A tied head is the embedding used twice, never a second leaf: an alias would come back untied from jax.jit.
    self.head = None if config.tied else nnx.Param(_init(rngs.params(), (config.width, config.vocab_size)))

  def embed(self, ids_BT: jax.Array) -> jax.Array:
    return lookup(self.embedding[...], ids_BT)

  def head_DV(self) -> jax.Array:  # noqa: N802
    """Returns the output projection, whichever leaf it lives in."""
    return self.embedding[...].T if self.head is None else self.head[...]

  def logits(self, x_BTD: jax.Array) -> jax.Array:
    """Returns logits_BTV of a residual stream that left the last block."""
    x_BTD = self.norm(x_BTD)
    return product_with_rows(x_BTD, self.embedding[...]) if self.head is None else product(x_BTD, self.head[...])

  def __call__(self, ids_BT: jax.Array, *, layout: Layout = "scan") -> jax.Array:
    """Returns logits_BTV of whole sequences at positions 0..T-1."""
    return self.logits(hidden(self, ids_BT, layout=layout))


def walk(
  layers: Any,
  carry: Carry,
  body: Callable[[Block, Carry, Any], tuple[Carry, Any]],
  per_layer: Any = None,
  *,
  layout: Layout = "scan",
) -> tuple[Carry, Any]:
  """Carries `carry` through `body(layer, carry, per_layer[l])` over the layers in order.

  Returns the last carry and the bodies' second results, stacked along a leading axis L. `per_layer` is a pytree of
  arrays with leading axis L, or None.
  """
  if not len(layers):
    raise ValueError("a model needs at least one layer")
  results: list[Any] = []
  if layout == "scan":
    # Layers of another make (frozen, with adapters) are a stack of their own: what is frozen gets no gradient so.
    for _, run in itertools.groupby(range(len(layers)), key=lambda index: jax.tree.structure(layers[index])):
      first, *others = run
      span = slice(first, first + 1 + len(others))
      stack = jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers[span])
      given = stack, jax.tree.map(lambda a: a[span], per_layer)  # noqa: B023
      carry, result = jax.lax.scan(lambda x, layer: body(layer[0], x, layer[1]), carry, given)
      results.append(result)
    return carry, results[0] if len(results) == 1 else jax.tree.map(lambda *a: jnp.concatenate(a), *results)
  for index, layer in enumerate(layers):
    carry, result = body(layer, carry, jax.tree.map(lambda a: a[index], per_layer))  # noqa: B023
    results.append(result)
  return carry, jax.tree.map(lambda *leaves: jnp.stack(leaves), *results)


def positions(ids_BT: jax.Array, segments_BT: jax.Array | None = None) -> jax.Array:
  """Returns positions_1T = 0..T-1, which broadcast over the batch; with segments positions_BT, anew from 0 in each.

  They lie in stripes where the sequence is spread so; the segments come in the sequence's own order.
  """
  place_BT = jnp.arange(ids_BT.shape[1])[None]
  if segments_BT is not None:
    begins_BT = jnp.diff(segments_BT, axis=1, prepend=segments_BT[:, :1]) != 0
    place_BT = place_BT - jax.lax.cummax(jnp.where(begins_BT, place_BT, 0), axis=1)
  place_BT = striped(place_BT, parts_of(ids_BT, 1))
  spec = spec_of(ids_BT)
  return place_BT if segments_BT is None or spec is None else jax.sharding.reshard(place_BT, spec)


def hidden(
  model: Llama,
  ids_BT: jax.Array,
  *,
  segments_BT: jax.Array | None = None,
  layout: Layout = "scan",
  remat: Remat = "dots",
) -> jax.Array:
  """Returns the raw residual stream x_BTD that leaves the last block, before the final norm.

  Each of the segments goes through the model as if it stood alone.
  """
  return hidden_and(model, ids_BT, lambda *_: None, segments_BT=segments_BT, layout=layout, remat=remat)[0]


def hidden_and(
  model: Llama,
  ids_BT: jax.Array,
  look: Callable[[jax.Array, jax.Array, Any], Any],
  per_layer: Any = None,
  *,
  segments_BT: jax.Array | None = None,
  layout: Layout = "scan",
  remat: Remat = "dots",
) -> tuple[jax.Array, Any]:
  """Returns `hidden`, and what `look(before_BTD, after_BTD, per_layer[l])` sees of the stream at block l, stacked."""
  turn = rotation(model.config, positions(ids_BT, segments_BT))
  attend = functools.partial(attention.causal_attention, segments_BT=segments_BT)

  def run(block: Block, x_BTD: jax.Array) -> jax.Array:
    block = cast(block, x_BTD.dtype)
    return (block if layout == "scan" else jax.tree.map(settled, block))(x_BTD, turn, attend)

  if remat != "none":
    # A scan keeps forward and backward apart by itself; unrolled, the compiler would undo the recomputation.
    run = jax.checkpoint(run, policy=_POLICIES[remat], prevent_cse=layout != "scan")

  def body(layer: Block, x_BTD: jax.Array, given: Any) -> tuple[jax.Array, Any]:
    after_BTD = run(layer, x_BTD)
    return after_BTD, look(x_BTD, after_BTD, given)

  return walk(model.layers, model.embed(ids_BT), body, per_layer, layout=layout)
