"""The unpruned model as a teacher: beside the student in one program, what neither trains held once.

Shapes: B batch, T sequence, D width, L layers of the student.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxchop.data.batch import Batch
from jaxchop.errors import UsageError
from jaxchop.model.config import LlamaConfig
from jaxchop.model.divergence import States, Teaching, distilled_loss
from jaxchop.model.flops import forward_flops
from jaxchop.model.llama import Llama, hidden_and
from jaxchop.model.tree import flatten, unflatten
from jaxchop.recover.objective import computing, inputs
from jaxchop.recover.trainable import Flat
from jaxchop.training import DistillConfig, RecoverConfig

_PREFIX = "teacher."


@dataclasses.dataclass(frozen=True, eq=False)
class Teacher:
  """A model beside the one that trains: where its weights are, and which of its layers the student's were."""

  like: Llama
  # {dotted name: name among the weights that do not train}.
  names: Mapping[str, str]
  # The teacher's layer that each layer of the student was; None where nobody knows.
  keep: tuple[int, ...] | None

  def join(self, frozen: Mapping[str, Any]) -> Llama:
    """Returns the teacher, of all weights that do not train."""
    return unflatten(self.like, {name: frozen[key] for name, key in self.names.items()})

  def flops(self, length: int) -> float:
    """Returns the operations a token of its forward pass over sequences of `length` tokens."""
    return forward_flops(self.like.config, len(self.like.layers), length).total


def needed(config: DistillConfig) -> bool:
  """Returns whether anything is to be learnt from a teacher."""
  return config.weight > 0 or config.hidden > 0


def stands_beside(config: DistillConfig) -> bool:
  """Returns whether the teacher itself runs in every step: what it expects was not computed before."""
  return needed(config) and not config.cache_top


def require_same_tokens(teacher: LlamaConfig, student: LlamaConfig) -> None:
  """Raises UsageError where a teacher's distributions are over another number of tokens than the student's."""
  if teacher.vocab_size != student.vocab_size:
    raise UsageError(
      f"recover.distill.teacher: it has {teacher.vocab_size} tokens, the student {student.vocab_size}; take one with "
      "the same tokenizer"
    )


def beside(
  teacher: Llama, student: Llama, frozen: Flat, config: DistillConfig, keep: Sequence[int] | None
) -> tuple[Teacher, Flat]:
  """Returns the teacher, and its weights that are not the student's frozen ones, by names of their own.

  Weights are the same where they are one array. Raises UsageError where the student cannot learn from this teacher.
  """
  require_same_tokens(teacher.config, student.config)
  if config.hidden and (keep is None or teacher.config.width != student.config.width):
    raise UsageError(
      "recover.distill.hidden: nothing says which of the teacher's layers the student's were; leave it out, or take "
      "the unpruned model as teacher in a recipe that prunes"
    )
  shared = {id(leaf): name for name, leaf in frozen.items()}
  flat = flatten(teacher)
  names = {name: shared.get(id(leaf), _PREFIX + name) for name, leaf in flat.items()}
  like = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype), teacher)
  own = {names[name]: leaf for name, leaf in flat.items() if names[name].startswith(_PREFIX)}
  return Teacher(like, names, None if keep is None else tuple(keep)), own


def distilled(
  student: Llama, teacher: Llama, keep: tuple[int, ...] | None, batch: Batch, config: RecoverConfig
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Returns what a step minimises, summed over tokens, and its parts: loss (cross-entropy), divergence, hidden_error.

  Only the gradient of the first is meant: of (1 - weight) * cross-entropy + weight * divergence + hidden *
  hidden_error. The hidden error is that of states behind each layer against those behind its original, squared and over
  the squared length of the original, on average over layers.
  """
  settings, layout = config.distill, config.layout
  student = computing(student, batch, config.compute_dtype, layout)
  teacher = computing(teacher, batch._replace(noise=None), config.compute_dtype, layout)
  ids_BT, target_BT, weight_BT, segments_BT = inputs(batch)
  matching = settings.hidden > 0
  seen, states_LBTD = hidden_and(
    teacher,
    ids_BT,
    lambda _, x_BTD, __: jax.lax.stop_gradient(x_BTD) if matching else None,
    segments_BT=segments_BT,
    layout=layout,
    remat="none",
  )
  originals_LBTD = states_LBTD[jnp.array(keep)] if matching else None

  def error(_: jax.Array, x_BTD: jax.Array, original_BTD: jax.Array | None) -> jax.Array | None:
    if original_BTD is None:
      return None
    x, original = x_BTD.astype(jnp.float32), original_BTD.astype(jnp.float32)
    apart_BT = jnp.sum(jnp.square(x - original), -1) / jnp.sum(jnp.square(original), -1)
    return jnp.sum(apart_BT * weight_BT)

  x_BTD, errors_L = hidden_and(
    student, ids_BT, error, originals_LBTD, segments_BT=segments_BT, layout=layout, remat=config.remat
  )
  teaching = Teaching(settings.divergence, settings.weight, settings.temperature, config.z_loss)
  loss, divergence = distilled_loss(
    student.norm(x_BTD),
    student.head_DV(),
    States(jax.lax.stop_gradient(teacher.norm(seen)), teacher.head_DV()),
    target_BT,
    weight_BT,
    teaching,
    chunk=config.loss_chunk,
  )
  told = {"loss": loss, "divergence": divergence}
  if not matching:
    return loss, told
  told["hidden_error"] = jnp.mean(errors_L)
  return loss + settings.hidden * told["hidden_error"], told
