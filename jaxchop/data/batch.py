"""What one step trains on: records, how much each of their predictions counts, and where their documents end.

Shapes: R rows of the batch, T tokens that a record predicts, S = T + 1 tokens that it holds, K likely tokens.
"""

from typing import Any, NamedTuple

import numpy as np


class Batch(NamedTuple):
  """Some or all rows of a step's batch: numpy arrays from a loader, or what became of them on devices."""

  # Token ids [R, S], int32.
  ids: Any
  # Weights [R, T], float32: of predicting ids[:, t + 1] from what stands before it; 0 leaves a prediction out.
  weight: Any
  # Documents of the tokens [R, S], int32, counted from 1 in each record; None where all of a record is one text.
  segments: Any = None
  # Random bits of the rows [R, 2], uint32, for what a training step leaves to chance; None where that is nothing.
  noise: Any = None
  # A teacher's most likely tokens, int32, and the logarithms of their shares, float32, [R, T, K] each; None without.
  likely: Any = None


def batch_of(ids_RS: Any, segments_RS: Any = None, targets_RS: Any = None) -> Batch:
  """Returns records as a batch: each token that is to be predicted counts once, the first of a document not at all.

  Without segments a record is one document, and without targets every token is to be predicted.
  """
  wanted_RT = np.ones((len(ids_RS), ids_RS.shape[1] - 1), bool)
  if segments_RS is not None:
    wanted_RT &= segments_RS[:, 1:] == segments_RS[:, :-1]
  if targets_RS is not None:
    wanted_RT &= targets_RS[:, 1:].astype(bool)
  return Batch(ids_RS, wanted_RT.astype(np.float32), segments_RS)
