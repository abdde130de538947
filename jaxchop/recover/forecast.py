"""How the loss of a pruned model falls with the tokens it is trained on, from short probes.

For one model and one plan the post-pruning scaling law (P² law, arXiv 2411.10272) is loss = floor + scale / D^power of
the tokens D: what size and pruning rate add to it is constant. Shapes: P probes, N held-out windows, G powers tried, S
samples of the windows, Q numbers of tokens asked for.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from jaxchop.errors import JaxchopError, UsageError

_POWERS_G = np.linspace(0.02, 2.0, 100)
_SAMPLES = 400
_LEAST = 4


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Law:
  """loss = floor + scale / tokens^power, in nats a token; the best fit and those of samples of the windows [S]."""

  floor: float
  scale: float
  power: float
  floors: NDArray[np.float64]
  scales: NDArray[np.float64]
  powers: NDArray[np.float64]
  # Largest distance of a probe from the best fit, in nats.
  worst: float

  def loss(self, tokens: float) -> float:
    return self.floor + self.scale * tokens**-self.power

  def interval(self, tokens: float) -> tuple[float, float]:
    """Returns the middle 95 % of the samples' losses, and what the probes are off by on top."""
    found_S = self.floors + self.scales * tokens**-self.powers
    low, high = np.quantile(found_S, (0.025, 0.975))
    return float(low) - self.worst, float(high) + self.worst

  def tokens_to(self, loss: float) -> float | None:
    """Returns the tokens that it takes to come down to a loss; None where the floor is above it."""
    return _tokens(self.floor, self.scale, self.power, loss)

  def tokens_interval(self, loss: float) -> tuple[float, float | None]:
    """Returns the middle 95 % of the samples' tokens to a loss; None where so many of them never come down to it."""
    each = zip(self.floors.tolist(), self.scales.tolist(), self.powers.tolist(), strict=True)
    found = sorted(math.inf if (tokens := _tokens(*one, loss)) is None else tokens for one in each)
    low, high = (found[min(int(share * len(found)), len(found) - 1)] for share in (0.025, 0.975))
    return low, None if math.isinf(high) else high

  def enough(self, gain: float) -> float:
    """Returns the tokens from which on twice as many gain less than `gain` nats."""
    drop = self.scale * (1 - 2**-self.power)
    return (drop / gain) ** (1 / self.power)


def fit(
  tokens_P: Sequence[float], nll_PN: NDArray[np.float64], counted_N: NDArray[np.float64], *, seed: int = 0
) -> Law:
  """Returns the law through the losses of probes: summed nats of each window [P, N], over the tokens of each [N].

  The best power of a grid, with floor and scale by least squares, none of them negative. The samples are of windows
  with replacement, the same for all probes: what is uncertain is which text is held out. Raises UsageError on fewer
  than four different numbers of tokens, JaxchopError where more tokens do not lower the loss.
  """
  if len(set(tokens_P)) < _LEAST:
    raise UsageError(f"a forecast takes probes of at least {_LEAST} different numbers of tokens; name more")
  if np.corrcoef(np.log(tokens_P), nll_PN.sum(1))[0, 1] >= 0:
    raise JaxchopError("the loss of the probes does not fall with their tokens; take longer ones, or a lower rate")
  draws = np.random.default_rng(seed)
  times_SN = draws.multinomial(nll_PN.shape[1], np.full(nll_PN.shape[1], 1 / nll_PN.shape[1]), _SAMPLES)
  times_SN = np.concatenate([np.ones((1, nll_PN.shape[1]), int), times_SN])
  loss_SP = times_SN @ nll_PN.T / (times_SN @ counted_N)[:, None]
  floor_S, scale_S, power_S = _best(np.array(tokens_P, float), loss_SP)
  found_P = floor_S[0] + scale_S[0] * np.array(tokens_P, float) ** -power_S[0]
  return Law(
    floor=float(floor_S[0]),
    scale=float(scale_S[0]),
    power=float(power_S[0]),
    floors=floor_S[1:],
    scales=scale_S[1:],
    powers=power_S[1:],
    worst=float(np.abs(found_P - loss_SP[0]).max()),
  )


def _best(tokens_P: NDArray, loss_SP: NDArray) -> tuple[NDArray, NDArray, NDArray]:
  """Returns floor, scale and power [S] with the least squared error."""
  # Tokens in units of the probes' geometric mean, so that the two columns are of one size.
  unit = math.exp(np.log(tokens_P).mean())
  x_GP = (tokens_P / unit) ** -_POWERS_G[:, None]
  away_GP = x_GP - x_GP.mean(1, keepdims=True)
  scale_SG = (loss_SP @ away_GP.T) / np.sum(away_GP**2, 1)
  floor_SG = loss_SP.mean(1)[:, None] - scale_SG * x_GP.mean(1)
  # Where the floor would be negative, there is none.
  bare_SG = (loss_SP @ x_GP.T) / np.sum(x_GP**2, 1)
  scale_SG, floor_SG = np.where(floor_SG < 0, bare_SG, scale_SG), np.maximum(floor_SG, 0)
  error_SG = np.sum((floor_SG[..., None] + scale_SG[..., None] * x_GP - loss_SP[:, None]) ** 2, -1)
  best_S = np.argmin(np.where(scale_SG > 0, error_SG, np.inf), 1)
  rows = np.arange(len(loss_SP))
  power_S = _POWERS_G[best_S]
  return floor_SG[rows, best_S], np.maximum(scale_SG[rows, best_S], 0) * unit**power_S, power_S


def _tokens(floor: float, scale: float, power: float, loss: float) -> float | None:
  if loss <= floor:
    return None
  return (scale / (loss - floor)) ** (1 / power)
