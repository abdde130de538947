"""Two models on the same windows: the difference of their losses is known far better than either loss."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxchop.evaluate.perplexity import error_of_mean


def paired(model: Mapping[str, Any], other: Mapping[str, Any]) -> tuple[float, float | None] | None:
  """Returns the nats a token by which a model loses more than another, and the standard error of that.

  Both are entries of `measure`. None where their windows are not the same: other tokens, or another protocol. The error
  is None for a single window.
  """
  if model["window_tokens"] != other["window_tokens"] or model["perplexity"].keys() != other["perplexity"].keys():
    return None
  tokens_N, apart_N = np.array(model["window_tokens"]), np.subtract(model["window_nll"], other["window_nll"])
  return float(apart_N.sum() / tokens_N.sum()), error_of_mean(apart_N, tokens_N)
