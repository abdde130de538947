"""One step of recovery, as a pure function from (trained, opt_state, batch) to (trained, opt_state, metrics)."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxchop.data.batch import Batch
from jaxchop.errors import UsageError
from jaxchop.model.llama import Llama
from jaxchop.recover.adapters import row_noise
from jaxchop.recover.fading import Fading, faded_loss, gate
from jaxchop.recover.likely import learned
from jaxchop.recover.objective import summed_loss
from jaxchop.recover.optimizer import learning_rate, make_optimizer, updates_done
from jaxchop.recover.signals import Wish
from jaxchop.recover.teacher import Teacher, distilled
from jaxchop.recover.trainable import ADAPTERS
from jaxchop.training import RecoverConfig

Step = Callable[..., tuple[Any, Any, "Metrics"]]
Join = Callable[[Any, Any], Llama]


class Metrics(NamedTuple):
  """Scalars of one step."""

  # Mean negative log-likelihood of the batch before the update, in nats a token.
  loss: jax.Array
  # Global norm of the mean loss's gradient before clipping.
  grad_norm: jax.Array
  learning_rate: Any
  # False when the step changed nothing: it was not finite, its loss above the limit, or too many before were skipped.
  applied: jax.Array
  # The strongest wish to stop that a process has given to this step (recover/signals.py).
  wish: jax.Array
  # Steps in a row, this one among them, that changed nothing because their loss or gradient was not finite.
  skipped: jax.Array
  # What else the step minimises, a token: {"divergence": …, "hidden_error": …} of a teacher, {"change": …} of layers
  # that fade.
  told: dict[str, jax.Array]


def whole(trained: Llama, frozen: None) -> Llama:
  """Returns the model where all of it trains."""
  del frozen
  return trained


def init_optimizer(config: RecoverConfig, trained: Any) -> Any:
  """Returns the optimizer state of a run that starts now; its moments have the shapes of the trained parameters."""
  return make_optimizer(config.optimizer, config.steps).init(trained)


def make_step(
  config: RecoverConfig, join: Join = whole, teacher: Teacher | None = None, fading: Fading | None = None
) -> Step:
  """Returns step(trained, opt_state, batch, skipped=0, limit=inf, wish=0, frozen=None), to be jitted with two donated.

  `join` makes the model of its trained and its frozen parameters, which get no gradient; by default the trained ones
  are the model itself. A `teacher` is made of the frozen ones too. With `fading` the layers that it names are gated,
  and learn from the text alone.

  A step whose loss or gradient is not finite, or whose loss is above `limit`, returns its first two unchanged. So
  does every step behind more than `config.skip_nonfinite` in a row that were not finite: passing the `skipped` of the
  step before lets steps be queued behind one whose metrics nobody has read yet. `wish` holds one number a device, from
  the process that it belongs to; where one of them is Wish.FAIL, nothing changes either.
  """
  if config.batch_size % config.accumulate:
    raise UsageError(
      f"recover.accumulate is {config.accumulate}, which does not divide recover.batch_size {config.batch_size}"
    )
  optimizer = make_optimizer(config.optimizer, config.steps)
  rate = learning_rate(config.optimizer, config.steps)
  objective = objective_of(config, join, teacher, fading)
  leaves_out = config.trainable in ADAPTERS and config.adapter.dropout > 0

  def step(
    trained: Any,
    opt_state: Any,
    batch: Batch,
    skipped: Any = 0,
    limit: Any = jnp.inf,
    wish: Any = Wish.NONE,
    frozen: Any = None,
  ) -> tuple[Any, Any, Metrics]:
    if leaves_out:
      batch = batch._replace(noise=row_noise(config.seed, updates_done(opt_state), batch.ids))

    def minimised(trained: Any, batch: Batch) -> tuple[jax.Array, dict[str, jax.Array]]:
      return objective(trained, frozen, batch, updates_done(opt_state))

    (_, told), grads = mean_loss_and_gradient(minimised, trained, batch, config.accumulate, has_aux=True)
    loss = told.pop("loss")
    norm = optax.tree.norm(grads)
    sound, go = jnp.isfinite(loss) & jnp.isfinite(norm), jnp.asarray(skipped) <= config.skip_nonfinite
    strongest = jnp.max(jnp.asarray(wish))
    applied = sound & go & (loss <= limit) & (strongest != Wish.FAIL)
    updates, new_state = optimizer.update(grads, opt_state, trained)
    new = jax.tree.map(jnp.add, trained, updates), new_state
    in_a_row = jnp.where(go, jnp.where(sound, 0, skipped + 1), skipped)
    metrics = Metrics(loss, norm, rate(updates_done(opt_state)), applied, strongest, in_a_row, told)
    return *jax.tree.map(partial(jnp.where, applied), new, (trained, opt_state)), metrics

  return step


def objective_of(
  config: RecoverConfig, join: Join, teacher: Teacher | None = None, fading: Fading | None = None
) -> Callable[..., tuple[jax.Array, dict[str, jax.Array]]]:
  """Returns objective(trained, frozen, batch, updates done): the sum over tokens that is minimised, and its parts."""

  def objective(trained: Any, frozen: Any, batch: Batch, done: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
    model = join(trained, frozen)
    if fading is not None:
      return faded_loss(model, batch, fading, gate(done, config.steps), config)
    if batch.likely is not None:
      return learned(model, batch, config)
    if teacher is not None:
      return distilled(model, teacher.join(frozen), teacher.keep, batch, config)
    loss = summed_loss(
      model,
      batch,
      compute_dtype=config.compute_dtype,
      layout=config.layout,
      remat=config.remat,
      z_loss=config.z_loss,
      chunk=config.loss_chunk,
    )
    return loss, {"loss": loss}

  return objective


def mean_loss_and_gradient(
  loss_of: Callable[[Any, Batch], Any], trained: Any, batch: Batch, accumulate: int, *, has_aux: bool = False
) -> tuple[Any, Any]:
  """Returns the mean loss a token and its gradient, summed over `accumulate` micro-batches one after the other.

  Each micro-batch counts by its weights, so cutting the batch differently gives the same result. `loss_of` sums; with
  `has_aux` it returns beside the loss a pytree of other sums, and so does this of means.
  """
  share_BT = batch.weight / jnp.sum(batch.weight)
  batch = batch._replace(weight=share_BT)
  compute = jax.value_and_grad(loss_of, has_aux=has_aux)
  if accumulate == 1:
    return compute(trained, batch)
  # A micro-batch takes every so many-th row, so that rows spread over devices stay where they are.
  parts = jax.tree.map(lambda a: jnp.moveaxis(a.reshape(-1, accumulate, *a.shape[1:]), 1, 0), batch)

  def add(total: Any, part: Batch) -> tuple[Any, None]:
    return jax.tree.map(jnp.add, total, compute(trained, part)), None

  values, _ = jax.eval_shape(compute, trained, jax.tree.map(lambda a: a[0], parts))
  zeros = jax.tree.map(lambda value: jnp.zeros(value.shape, value.dtype), values)
  return jax.lax.scan(add, (zeros, jax.tree.map(jnp.zeros_like, trained)), parts)[0]
