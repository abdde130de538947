"""The difference of two models is that of their windows, and its error that of the differences."""

import math

import numpy as np
import pytest

from jaxchop.evaluate.paired import paired


def entry(nll, tokens, protocol="window 8"):
  return {"window_nll": list(nll), "window_tokens": list(tokens), "perplexity": {protocol: 1.0}}


def test_what_windows_have_in_common_cancels():
  draw = np.random.default_rng(0)
  hard_N, tokens_N = draw.normal(80, 20, 50), np.full(50, 32)
  mean, error = paired(entry(hard_N + 3.2, tokens_N), entry(hard_N, tokens_N))
  assert mean == pytest.approx(0.1) and error == pytest.approx(0, abs=1e-12)
  apart_N = draw.normal(3.2, 1, 50)
  mean, error = paired(entry(hard_N + apart_N, tokens_N), entry(hard_N, tokens_N))
  assert mean == pytest.approx(apart_N.mean() / 32)
  assert error == pytest.approx(apart_N.std(ddof=1) / math.sqrt(50) / 32)


def test_other_windows_are_not_compared():
  one = entry([1, 2], [4, 4])
  assert paired(one, entry([1, 2], [4, 3])) is None
  assert paired(one, entry([1, 2], [4, 4], "window 16")) is None
  assert paired(entry([3], [4]), entry([1], [4])) == (0.5, None)
