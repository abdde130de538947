"""What trains: which parameters the optimizer sees, which stay as they are, and the model that both make together."""

import dataclasses
import functools
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxchop.errors import UsageError
from jaxchop.layers import parse_layers
from jaxchop.model.adapter import Adapted, linears
from jaxchop.model.config import LlamaConfig
from jaxchop.model.flops import Flops, forward_flops
from jaxchop.model.llama import Llama
from jaxchop.model.tree import abstract, dotted, flatten, unflatten
from jaxchop.prune.plan import Plan
from jaxchop.recover.adapters import TRAINED, with_adapters
from jaxchop.training import AdapterConfig, PartialConfig, RecoverConfig

Flat = dict[str, Any]
# Ways that train adapters beside the weights.
ADAPTERS = ("lora", "dora", "qlora")
_LAYER = re.compile(r"layers\.(\d+)\.")
# The parts of a layer in the order of a forward pass; attention itself stands before its output projection.
_BEHIND_ATTENTION = ("attention.o",)
_PARTS = (
  ("attention_norm",),
  ("attention.q", "attention.k", "attention.v"),
  _BEHIND_ATTENTION,
  ("mlp_norm",),
  ("mlp.gate", "mlp.up"),
  ("mlp.down",),
)


class Frozen(nnx.Param):
  """A parameter that is not trained: as a type of its own it keeps its layer out of the stack of trained ones."""


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Way:
  """How a model of one shape is trained; flat dicts are {dotted name: array}."""

  # The model that trains: shapes, in which `Frozen` are the parameters that do not.
  like: Llama
  # Names of the parameters that train.
  names: frozenset[str]
  # Makes of a model the one that trains.
  prepare: Callable[[Llama], Llama]

  def split(self, model: Llama) -> tuple[Flat, Flat]:
    """Returns the trained and the frozen parameters of a prepared model."""
    flat = flatten(model)
    trained = {name: leaf for name, leaf in flat.items() if name in self.names}
    return trained, {name: leaf for name, leaf in flat.items() if name not in self.names}

  def join(self, trained: Mapping[str, Any], frozen: Mapping[str, Any]) -> Llama:
    """Returns the model that trains."""
    flat = {**frozen, **trained}
    return unflatten(self.like, {name: flat[name] for name in flatten(self.like)})

  def stock(self, trained: Mapping[str, Any], frozen: Mapping[str, Any]) -> Llama:
    """Returns the model with its parameters as any other's; adapters are merged into their kernels."""
    model = self.join(trained, frozen)
    flat = {**frozen, **trained}
    for name, linear in linears(model):
      if isinstance(linear, Adapted):
        flat[f"{name}.kernel"] = jax.jit(Adapted.merged_kernel)(linear)
    like = abstract(self.like.config, len(self.like.layers))
    return unflatten(like, {name: flat[name] for name in flatten(like)})

  def base(self, frozen: Mapping[str, Any]) -> Llama:
    """Returns the model that the adapters were trained on, as any other."""
    flat, like = dict(frozen), abstract(self.like.config, len(self.like.layers))
    for name, linear in linears(unflatten(self.like, {**dict.fromkeys(self.names), **frozen})):
      if isinstance(linear, Adapted):
        flat[f"{name}.kernel"] = linear.kernel[...]
    return unflatten(like, {name: flat[name] for name in flatten(like)})

  @property
  def size(self) -> int:
    """The parameters of the model as any other's."""
    return sum(leaf.size for leaf in jax.tree.leaves(abstract(self.like.config, len(self.like.layers))))

  def flops(self, length: int) -> Flops:
    """Returns the operations a token of a training step over sequences of `length` tokens."""
    sizes = {name: leaf.size for name, leaf in flatten(self.like).items() if leaf.ndim == 2}
    # Two codes of a kernel in four bits are one element.
    sizes |= {name.removesuffix(".codes"): 2 * size for name, size in sizes.items() if name.endswith(".codes")}
    # A magnitude also scales the product with what dropout leaves, which the kernel's own does not have.
    twice = {
      f"{name}.kernel"
      for name, linear in linears(self.like)
      if isinstance(linear, Adapted) and linear.magnitude is not None and linear.dropout
    }
    again = sum(sizes[name] for name in twice)
    reached, inputs, attention = "embedding" in self.names, 0, 0
    for layer in range(len(self.like.layers)):
      for part in _PARTS:
        # The gradient of a product's input is wanted only where something before it trains.
        leaves = ("kernel", "a") if reached else ()
        inputs += sum(sizes.get(f"layers.{layer}.{name}.{leaf}", 0) for name in part for leaf in (*leaves, "b"))
        again += sum(sizes[kernel] for name in part if reached and (kernel := f"layers.{layer}.{name}.kernel") in twice)
        attention += reached and part == _BEHIND_ATTENTION
        own = (f"layers.{layer}.{name}.{leaf}" for name in part for leaf in ("kernel", "bias", "scale", *TRAINED))
        reached = reached or any(name in self.names for name in own)
    trained = sum(size for name, size in sizes.items() if name in self.names and name not in ("embedding", "head"))
    thin = sum(size for name, size in sizes.items() if name.rpartition(".")[2] in TRAINED)
    config, head = self.like.config, "head" in self.names or (self.like.config.tied and "embedding" in self.names)
    forward = forward_flops(config, len(self.like.layers), length)
    return Flops(
      forward.kernels + 2 * (thin + inputs + trained + again),
      forward.attention * (1 + 2 * attention / len(self.like.layers)),
      forward.head * (1 + (reached or "norm.scale" in self.names) + head),
    )


@functools.cache
def way_of(config: RecoverConfig, architecture: LlamaConfig, layers: int) -> Way:
  """Returns how a model of this architecture with so many layers trains by `config.trainable`.

  Raises UsageError on settings that name what the model does not have, or nothing at all.
  """
  match config.trainable:
    case "all":
      way = _way(_as_it_is, lambda names: names, architecture, layers)
    case "partial":
      chosen = functools.partial(_chosen, config.partial, layers)
      way = _way(untied if config.partial.head else _as_it_is, chosen, architecture, layers)
    case "lora" | "dora" | "qlora":
      prepare = functools.partial(
        with_adapters,
        config=config.adapter,
        seed=config.seed,
        dora=config.trainable == "dora",
        quantised=config.trainable == "qlora",
      )
      way = _way(prepare, _of_adapters, architecture, layers)
    case "replacement":
      raise UsageError("recover.trainable: replacement needs a recipe whose prune.merge makes layers; name the layers")
  for group in config.optimizer.groups:
    fitting(group.match, way.names, "recover.optimizer.groups")
  return way


def fitting(pattern: str, names: Iterable[str], setting: str) -> set[str]:
  """Returns the names that fit a regular expression as a whole; raises UsageError where none does."""
  try:
    found = {name for name in names if re.fullmatch(pattern, name)}
  except re.error as error:
    raise UsageError(f"{setting}: {pattern!r} is no regular expression: {error}") from None
  if not found:
    some = ", ".join(sorted(names, key=lambda name: (name.count("."), name))[:6])
    raise UsageError(f"{setting}: {pattern!r} fits no whole name of a parameter; there are {some} …")
  return found


def replacements(plan: Plan) -> PartialConfig:
  """Returns as `partial` what the merges or the repair of a plan made. Raises UsageError where it made nothing."""
  place = {layer: str(index) for index, layer in enumerate(plan.keep)}
  if plan.repair and plan.repair.method == "linear_map":
    # The map is folded into one projection.
    pattern = rf"layers\.{place[plan.repair.start - 1]}\.mlp\.down\.kernel"
    return PartialConfig(last=0, norm=False, head=False, match=(pattern,))
  made = [plan.repair.start] if plan.repair else sorted({merge.into for merge in plan.merges} & set(plan.keep))
  if not made:
    raise UsageError("recover.trainable: replacement needs a prune.merge that makes layers; this one made none")
  return PartialConfig(layers=",".join(place[layer] for layer in made), norm=False, head=False)


def settings_of(written: Mapping[str, Any]) -> RecoverConfig:
  """Returns settings with all that decides the way, of settings that a checkpoint's meta holds."""

  def of(part: str) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in written[part].items()}

  partial, adapter = PartialConfig(**of("partial")), AdapterConfig(**of("adapter"))
  return RecoverConfig(trainable=written["trainable"], partial=partial, adapter=adapter)


def untied(model: Llama) -> Llama:
  """Returns the model with a head of its own, a copy of the embedding where it was tied; all else is shared."""
  if not model.config.tied:
    return model
  like = abstract(dataclasses.replace(model.config, tied=False), len(model.layers))
  return unflatten(like, {**flatten(model), "head": jax.jit(jnp.transpose)(model.embedding[...])})


def _as_it_is(model: Llama) -> Llama:
  return jax.tree.map(lambda leaf: leaf, model)


def _way(
  prepare: Callable[[Llama], Llama],
  chosen: Callable[[frozenset[str]], frozenset[str]],
  architecture: LlamaConfig,
  layers: int,
) -> Way:
  like = jax.eval_shape(prepare, abstract(architecture, layers))
  names = chosen(frozenset(flatten(like)))

  def marked(path: tuple[Any, ...], p: nnx.Param) -> nnx.Param:
    return p if dotted(path) in names else Frozen(p.get_value())

  like = jax.tree_util.tree_map_with_path(marked, like, is_leaf=lambda node: isinstance(node, nnx.Variable))
  return Way(like=like, names=names, prepare=prepare)


def _of_adapters(names: frozenset[str]) -> frozenset[str]:
  return frozenset(name for name in names if name.rpartition(".")[2] in TRAINED)


def _chosen(config: PartialConfig, layers: int, names: frozenset[str]) -> frozenset[str]:
  """Returns the parameters that `partial` names."""
  if not 0 <= config.last <= layers:
    raise UsageError(f"recover.partial.last is {config.last}; the model has {layers} layers")
  wanted = set(range(layers - config.last, layers))
  if config.layers is not None:
    wanted = set(parse_layers(config.layers, layers))
  found = {name for name in names if (layer := _LAYER.match(name)) and int(layer[1]) in wanted}
  found |= {"norm.scale"} if config.norm else set()
  found |= {"head"} if config.head else set()
  for pattern in config.match:
    found |= fitting(pattern, names, "recover.partial.match")
  if not found:
    raise UsageError("recover.partial: nothing is left to train; name layers, the norm, the head or match parameters")
  return frozenset(found)
