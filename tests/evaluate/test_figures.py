"""A figure has the error of its samples, and the difference of two that of the samples' differences."""

import math

import numpy as np
import pytest

from jaxchop.evaluate.figures import apart, figure


def perplexity(nll, tokens):
  nll, tokens = list(map(float, nll)), list(map(int, tokens))
  return figure(math.exp(sum(nll) / sum(tokens)), "perplexity", nll, tokens)


def test_what_samples_have_in_common_cancels():
  draw = np.random.default_rng(0)
  hard_N, tokens_N = draw.normal(80, 20, 50), np.full(50, 32)
  mean, error = apart(perplexity(hard_N + 3.2, tokens_N), perplexity(hard_N, tokens_N))
  assert mean == pytest.approx(0.1) and error == pytest.approx(0, abs=1e-12)
  apart_N = draw.normal(3.2, 1, 50)
  mean, error = apart(perplexity(hard_N + apart_N, tokens_N), perplexity(hard_N, tokens_N))
  assert mean == pytest.approx(apart_N.mean() / 32)
  assert error == pytest.approx(apart_N.std(ddof=1) / math.sqrt(50) / 32)


def test_other_samples_are_not_compared():
  one = perplexity([1, 2], [4, 4])
  assert apart(one, perplexity([1, 2], [4, 3])) is None and apart(one, figure(2.0, "perplexity")) is None
  assert apart(figure(2.0, "bits"), figure(2.0, "bits")) is None
  assert apart(perplexity([3], [4]), perplexity([1], [4])) == (0.5, None)


def test_the_error_is_that_of_the_unit():
  hits = [1, 0, 0, 1, 1, 0, 1, 1]
  share = figure(5 / 8, "share", hits)
  assert share["error"] == pytest.approx(np.std(hits, ddof=1) / math.sqrt(8)) and share["weights"] == [1] * 8
  nll = figure(2.0, "number", [1.0, 3.0], [1, 1])
  assert perplexity([1.0, 3.0], [1, 1])["error"] == pytest.approx(math.exp(2) * nll["error"])
  assert figure(0.5, "share", hits, error=0.1)["error"] == 0.1 and figure(0.5, "share")["error"] is None
