"""What a batch says of records: which of their predictions count."""

import numpy as np

from jaxchop.data.batch import batch_of


def test_without_segments_every_prediction_counts():
  batch = batch_of(np.arange(12, dtype=np.int32).reshape(2, 6))
  assert batch.segments is None and batch.weight.dtype == np.float32
  assert np.array_equal(batch.weight, np.ones((2, 5)))


def test_the_first_token_of_a_document_is_not_predicted_from_another_one():
  segments_RS = np.array([[1, 1, 2, 2, 2], [1, 2, 3, 3, 4]], np.int32)
  batch = batch_of(np.zeros((2, 5), np.int32), segments_RS)
  assert np.array_equal(batch.weight, [[1, 0, 1, 1], [0, 0, 1, 0]]) and batch.segments is segments_RS
