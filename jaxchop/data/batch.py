"""What one step trains on: records, how much each of their predictions counts, and where their documents end.

Shapes: R rows of the batch, T tokens that a record predicts, S = T + 1 tokens that it holds.
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


def batch_of(ids_RS: Any, segments_RS: Any = None) -> Batch:
  """Returns records without padding as a batch: each token counts once, the first of a document not at all.

  Without segments every prediction counts.
  """
  if segments_RS is None:
    return Batch(ids_RS, np.ones((len(ids_RS), ids_RS.shape[1] - 1), np.float32))
  return Batch(ids_RS, (segments_RS[:, 1:] == segments_RS[:, :-1]).astype(np.float32), segments_RS)
