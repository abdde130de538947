"""Floating-point operations of a model by formula: what a pass has to compute, however a program computes it.

Counted are the matrix products, a multiplication and an addition each; norms, activations and the softmax are left out,
and so is everything that a program computes twice to save memory. XLA's own count takes the body of a loop once.
"""

from typing import NamedTuple

from jaxchop.model.config import LlamaConfig


class Flops(NamedTuple):
  """Operations a token, on average over the positions of a sequence."""

  # Products with the kernels of the layers.
  kernels: float
  # Scores of queries against keys, and their weighted sum of values.
  attention: float
  # Product with the output head.
  head: float

  @property
  def total(self) -> float:
    return sum(self)

  def times(self, factor: float) -> "Flops":
    return Flops(*(factor * part for part in self))


def forward_flops(config: LlamaConfig, layers: int, length: int) -> Flops:
  """Returns the operations a token of a forward pass over sequences of `length` tokens.

  A position sees itself and what stands before it, (length + 1) / 2 keys on average; PaLM counts all of them. Sources:
  PaLM, arXiv 2204.02311, appendix B; Chinchilla, arXiv 2203.15556, appendix F.
  """
  D, F, N, K, H = config.width, config.mlp_width, config.heads, config.kv_heads, config.head_dim
  weights = 2 * D * N * H + 2 * D * K * H + 3 * D * F
  keys = (length + 1) / 2
  return Flops(2 * layers * weights, 2 * layers * 2 * N * H * keys, 2 * D * config.vocab_size)
