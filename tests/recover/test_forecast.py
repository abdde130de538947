"""The law through short probes: found where it holds, sure only of what the held-out windows say."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxchop.errors import JaxchopError, UsageError
from jaxchop.recover.forecast import fit

PROBES = [4096, 8192, 16384, 32768, 65536]
WINDOWS = 40


def probes(floor, scale, power, *, spread=0.3, noise=0.0, seed=0):
  """Summed losses [P, N] of windows that differ as those of a text do, by a law of their mean; tokens of each [N]."""
  draws = np.random.default_rng(seed)
  own_N = draws.normal(0, spread, WINDOWS)
  law_P = floor + scale * np.array(PROBES, float) ** -power
  nll_PN = law_P[:, None] + (own_N - own_N.mean()) + draws.normal(0, noise, (len(PROBES), WINDOWS))
  return 100 * nll_PN, np.full(WINDOWS, 100.0)


@given(st.floats(0.5, 4), st.floats(0.1, 1.0), st.floats(0.5, 3))
def test_a_law_that_holds_is_found(floor, power, drop):
  scale = drop * PROBES[0] ** power
  law = fit(PROBES, *probes(floor, scale, power))
  for tokens in (PROBES[0], PROBES[-1], 2 * PROBES[-1], 8 * PROBES[-1]):
    assert law.loss(tokens) == pytest.approx(floor + scale * tokens**-power, abs=0.01 * drop)
  assert law.worst < 0.01 * drop


def test_tokens_and_losses_are_each_others_inverse():
  law = fit(PROBES, *probes(2.0, 300.0, 0.5))
  assert law.tokens_to(law.loss(100_000)) == pytest.approx(100_000, rel=1e-6)
  assert law.tokens_to(law.floor) is None
  low, high = law.tokens_interval(law.loss(100_000))
  assert low <= 100_000 * 1.05 and high is not None and high >= 100_000 * 0.95


def test_twice_as_many_tokens_gain_what_enough_says():
  law = fit(PROBES, *probes(2.0, 300.0, 0.5))
  tokens = law.enough(0.01)
  assert law.loss(tokens) - law.loss(2 * tokens) == pytest.approx(0.01)


def test_a_text_that_varies_widens_the_interval():
  narrow, wide = (fit(PROBES, *probes(2.0, 300.0, 0.5, spread=spread)) for spread in (0.01, 0.5))
  for law in (narrow, wide):
    low, high = law.interval(4 * PROBES[-1])
    assert low < law.loss(4 * PROBES[-1]) < high
  size = lambda law: np.diff(law.interval(4 * PROBES[-1]))[0]  # noqa: E731
  assert size(wide) > 10 * size(narrow)


def test_the_interval_holds_the_truth_nine_times_in_ten():
  truth, held = 2.0 + 300.0 * (4 * PROBES[-1]) ** -0.5, 0
  for seed in range(40):
    low, high = fit(PROBES, *probes(2.0, 300.0, 0.5, noise=0.02, seed=seed)).interval(4 * PROBES[-1])
    held += low <= truth <= high
  assert held >= 36


def test_there_is_no_negative_floor():
  assert fit(PROBES, *probes(0.0, 30.0, 0.2)).floor >= 0
  steep = np.array([math.log(1e9 / tokens) for tokens in PROBES])[:, None] * np.ones(WINDOWS)
  law = fit(PROBES, 100 * (steep - steep.min() + 0.1), np.full(WINDOWS, 100.0))
  assert law.floor == 0 and law.loss(1e12) > 0


def test_too_few_or_rising_probes_are_refused():
  nll_PN, tokens_N = probes(2.0, 300.0, 0.5)
  with pytest.raises(UsageError, match="at least 4 different numbers of tokens"):
    fit(PROBES[:3] * 2, np.concatenate([nll_PN[:3]] * 2), tokens_N)
  with pytest.raises(JaxchopError, match="does not fall with their tokens; take longer ones, or a lower rate"):
    fit(PROBES, nll_PN[::-1], tokens_N)
