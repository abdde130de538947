"""Divergences and their gradients beside torch's, which hold the whole logits; chunk sizes change nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch.nn import functional as F  # noqa: E402, N812

from jaxchop.model.divergence import Likely, States, Teaching, distilled_loss  # noqa: E402

pytestmark = pytest.mark.torch
KINDS = ["forward", "reverse", "jensen_shannon"]
B, T, D, E, V = 2, 7, 5, 6, 23


def arrays() -> tuple[np.ndarray, ...]:
  draw = np.random.default_rng(0)
  shapes = (B, T, D), (D, V), (B, T, E), (E, V)
  target, weight = draw.integers(0, V, (B, T)), draw.integers(0, 3, (B, T)).astype(np.float32)
  return *(draw.normal(0, 1, shape).astype(np.float32) for shape in shapes), target, weight


def rest(shares, ids):
  """Returns the logarithm of what all tokens but these have together."""
  return shares.scatter(1, ids, -torch.inf).logsumexp(1, keepdim=True)


def by_torch(teaching: Teaching, likely: int = 0):
  x, head, teacher, teacher_head, target, weight = map(torch.from_numpy, arrays())
  x.requires_grad_(), head.requires_grad_()
  own, weight = (x @ head).flatten(0, 1), weight.flatten()
  loss = F.cross_entropy(own, target.flatten(), reduction="none") + teaching.z_loss * own.logsumexp(-1) ** 2
  q = F.log_softmax(own / teaching.temperature, -1)
  p = F.log_softmax((teacher @ teacher_head).flatten(0, 1) / teaching.temperature, -1)
  if likely:
    p, q = (torch.cat([a.gather(1, ids), rest(a, ids)], 1) for ids in [p.topk(likely).indices] for a in (p, q))
  mean = torch.logsumexp(torch.stack([p, q]), 0) - np.log(2)
  both = lambda a, b: F.kl_div(a, b, reduction="none", log_target=True).sum(-1)  # noqa: E731
  kinds = {"forward": lambda: both(q, p), "reverse": lambda: both(p, q)}
  kinds["jensen_shannon"] = lambda: (both(mean, p) + both(mean, q)) / 2
  apart = teaching.temperature**2 * kinds[teaching.kind]()
  (weight * ((1 - teaching.share) * loss + teaching.share * apart)).sum().backward()
  plain = F.cross_entropy(own, target.flatten(), reduction="none")
  return (weight * plain).sum().item(), (weight * apart).sum().item(), x.grad.numpy(), head.grad.numpy()


def by_us(teaching: Teaching, chunk: int = 1024, likely: int = 0):
  x, head, teacher, teacher_head, *others = map(jnp.asarray, arrays())
  said = States(teacher, teacher_head)
  if likely:
    shares = jax.nn.log_softmax(teacher @ teacher_head / teaching.temperature)
    said = Likely(*jax.lax.top_k(shares, likely)[::-1])

  def loss(x, head):
    return distilled_loss(x, head, said, *others, teaching, chunk=chunk)

  (loss, apart), grads = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(x, head)
  return loss, apart, *grads


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("changes", [{}, {"share": 0.3, "temperature": 2.5}, {"share": 0.0, "z_loss": 0.1}], ids=str)
def test_divergences_and_gradients_are_those_of_torch(kind: str, changes: dict[str, float]) -> None:
  teaching = Teaching(kind, **changes)
  for ours, theirs in zip(by_us(teaching), by_torch(teaching), strict=True):
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_chunks_give_what_the_whole_gives(kind: str) -> None:
  teaching = Teaching(kind, share=0.6, temperature=1.7)
  for whole, chunked in zip(by_us(teaching), by_us(teaching, chunk=4), strict=True):
    np.testing.assert_allclose(chunked, whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("changes", [{}, {"share": 0.3, "temperature": 2.5}], ids=str)
def test_of_a_teacher_known_by_its_likely_tokens_the_others_are_one(kind: str, changes: dict[str, float]) -> None:
  teaching = Teaching(kind, **changes)
  for ours, theirs in zip(by_us(teaching, chunk=4, likely=5), by_torch(teaching, likely=5), strict=True):
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_teacher_whose_every_token_is_known_is_the_whole_one(kind: str) -> None:
  teaching = Teaching(kind, temperature=1.7)
  for known, whole in zip(by_us(teaching, likely=V), by_us(teaching), strict=True):
    np.testing.assert_allclose(known, whole, rtol=1e-4, atol=1e-5)
