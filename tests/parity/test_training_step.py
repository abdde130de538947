"""Five steps of recovery beside torch's AdamW on transformers' Llama: same weights, batches and schedule."""

import dataclasses
import math

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch_llama import Drawn, gradients, ours, pair, tokens  # noqa: E402

from jaxchop.data.batch import Batch  # noqa: E402
from jaxchop.model.config import LlamaConfig  # noqa: E402
from jaxchop.model.llama import Llama  # noqa: E402
from jaxchop.model.tree import flatten  # noqa: E402
from jaxchop.recover.objective import summed_loss  # noqa: E402
from jaxchop.recover.step import init_optimizer, make_step, mean_loss_and_gradient  # noqa: E402
from jaxchop.training import OptimizerConfig, RecoverConfig  # noqa: E402

pytestmark = pytest.mark.torch
STEPS = 5
DRAWN = Drawn(
  LlamaConfig(
    vocab_size=64,
    width=24,
    mlp_width=40,
    heads=6,
    kv_heads=2,
    head_dim=4,
    norm_eps=1e-5,
    max_positions=64,
    tied=True,
    attention_bias=True,
    mlp_bias=True,
  ),
  layers=3,
  seed=5,
)
OPTIMIZER = OptimizerConfig(learning_rate=3e-3, warmup_steps=2, weight_decay=0.3, clip_norm=0.7)
CONFIG = RecoverConfig(steps=STEPS, batch_size=4, seq_len=16, optimizer=OPTIMIZER)


def batches() -> list[Batch]:
  """Records whose ends are padding, of another length in every row."""
  ids = tokens(DRAWN, STEPS, 4, 17).astype(np.int32)
  weight = (np.arange(16) < np.array([16, 11, 3, 7])[:, None]).astype(np.float32)
  return [Batch(ids[step], weight) for step in range(STEPS)]


def torch_loss(theirs: torch.nn.Module, batch: Batch) -> torch.Tensor:
  ids = torch.from_numpy(batch.ids.astype(np.int64))
  counted = torch.nn.functional.pad(torch.from_numpy(batch.weight) > 0, (1, 0))
  return theirs(ids, labels=torch.where(counted, ids, -100)).loss


def torch_rate(update: int) -> float:
  """The share of the highest rate at an update, counted from 0."""
  if update + 1 < OPTIMIZER.warmup_steps:
    return (update + 1) / OPTIMIZER.warmup_steps
  fallen = (update + 1 - OPTIMIZER.warmup_steps) / (STEPS - OPTIMIZER.warmup_steps)
  return OPTIMIZER.final_share + (1 - OPTIMIZER.final_share) * (1 + math.cos(math.pi * fallen)) / 2


def torch_steps(theirs: torch.nn.Module) -> tuple[list[float], list[float]]:
  """Trains transformers' model in place and returns its losses and gradient norms."""
  groups = [
    {"params": [p for p in theirs.parameters() if p.ndim > 1], "weight_decay": OPTIMIZER.weight_decay},
    {"params": [p for p in theirs.parameters() if p.ndim == 1], "weight_decay": 0.0},
  ]
  betas = OPTIMIZER.beta1, OPTIMIZER.beta2
  optimizer = torch.optim.AdamW(groups, lr=OPTIMIZER.learning_rate, betas=betas, eps=OPTIMIZER.eps)
  schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, torch_rate)
  losses, norms = [], []
  for batch in batches():
    loss = torch_loss(theirs, batch)
    loss.backward()
    norms.append(torch.nn.utils.clip_grad_norm_(theirs.parameters(), OPTIMIZER.clip_norm).item())
    losses.append(loss.item())
    optimizer.step()
    schedule.step()
    optimizer.zero_grad()
  return losses, norms


def our_steps(model: Llama, config: RecoverConfig) -> tuple[list[float], list[float], Llama]:
  opt_state, step = init_optimizer(config, model), jax.jit(make_step(config), donate_argnums=(0, 1))
  losses, norms = [], []
  for batch in batches():
    model, opt_state, metrics = step(model, opt_state, batch)
    losses.append(metrics.loss.item())
    norms.append(metrics.grad_norm.item())
  return losses, norms, model


@pytest.mark.parametrize(
  "changes", [{}, {"layout": "unrolled", "accumulate": 2, "remat": "full"}], ids=["scan", "unrolled"]
)
def test_five_steps_equal_those_of_torch(changes: dict[str, object]) -> None:
  theirs, model = pair(DRAWN)
  start = flatten(jax.tree.map(np.array, model))
  losses, norms, model = our_steps(model, dataclasses.replace(CONFIG, **changes))
  their_losses, their_norms = torch_steps(theirs)
  np.testing.assert_allclose(losses, their_losses, rtol=1e-5)
  np.testing.assert_allclose(norms, their_norms, rtol=1e-4)
  assert min(norms) > OPTIMIZER.clip_norm
  want = flatten(ours(theirs.state_dict(), DRAWN.ours, DRAWN.layers))
  for name, weight in flatten(model).items():
    # Of the way that the weights went. Adam divides a gradient by its size: rounding in a tiny one counts in full.
    way = np.abs(want[name] - start[name]).mean()
    np.testing.assert_allclose(np.abs(weight - want[name]).mean(), 0, atol=1e-3 * way, err_msg=name)
    np.testing.assert_allclose(weight, want[name], atol=1e-4, err_msg=name)


def test_the_gradient_with_padding_is_that_of_transformers() -> None:
  theirs, model = pair(DRAWN)
  batch = batches()[0]
  loss, grads = jax.jit(lambda m: mean_loss_and_gradient(summed_loss, m, batch, 1))(model)
  torch_loss(theirs, batch).backward()
  assert loss.item() == pytest.approx(torch_loss(theirs, batch).item(), rel=1e-6)
  for name, want in flatten(gradients(theirs, DRAWN)).items():
    np.testing.assert_allclose(flatten(grads)[name], want, rtol=1e-4, atol=1e-6, err_msg=name)
