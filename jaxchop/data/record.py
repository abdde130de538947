"""One packed record as bytes: a tf.train.Example, so that TFDS reads a cache of jaxchop as any other data set.

Shapes: S = seq_len + 1 tokens of a record.
"""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from tensorflow_datasets.proto import tf_example_pb2

from jaxchop.errors import JaxchopError

TOKENS, SEGMENTS, TARGETS = "tokens", "segments", "targets"
# Its class is made at import, unseen by type checkers.
_EXAMPLE: Any = tf_example_pb2.Example  # pyrefly: ignore
# What TFDS wants to stand beside the shards; it calls the only split `train`.
FEATURES, INFO = "features.json", "dataset_info.json"


def id_dtype(values: int) -> np.dtype:
  """Returns the type of stored ids below `values`: 16 bits where they suffice."""
  return np.dtype("<u2" if values <= 1 << 16 else "<u4")


def encode(record: Mapping[str, np.ndarray], dtypes: Mapping[str, np.dtype]) -> bytes:
  """Returns the bytes of a record's arrays [S], the same every time; what has no type is not stored."""
  example = _EXAMPLE()
  for name, dtype in dtypes.items():
    example.features.feature[name].bytes_list.value.append(record[name].astype(dtype).tobytes())
  return example.SerializeToString(deterministic=True)


def decode(record: bytes, dtypes: dict[str, np.dtype], size: int) -> dict[str, np.ndarray]:
  """Returns the arrays of a record, int32 [S] each; raises JaxchopError when they are not what the manifest says."""
  found = {}
  features = _EXAMPLE.FromString(record).features.feature
  for name, dtype in dtypes.items():
    values = features[name].bytes_list.value if name in features else ()
    if len(values) != 1 or len(values[0]) != size * dtype.itemsize:
      raise JaxchopError(f"a packed record does not hold {size} {name} of {dtype.name}; pack the text again")
    found[name] = np.frombuffer(values[0], dtype).astype(np.int32)
  return found


def tfds_files(dtypes: dict[str, np.dtype], size: int, records: list[int], total_bytes: int) -> dict[str, bytes]:
  """Returns {name: content} of the files by which TFDS knows shards of so many records."""
  tensor = {
    name: {
      "pythonClassName": "tensorflow_datasets.core.features.tensor_feature.Tensor",
      "tensor": {"dtype": dtype.name, "encoding": "bytes", "shape": {"dimensions": [str(size)]}},
    }
    for name, dtype in dtypes.items()
  }
  features = {
    "featuresDict": {"features": tensor},
    "pythonClassName": "tensorflow_datasets.core.features.features_dict.FeaturesDict",
  }
  split = {
    "name": "train",
    "filepathTemplate": "tokens-{SHARD_INDEX}.{FILEFORMAT}",
    "numBytes": str(total_bytes),
    "shardLengths": [str(count) for count in records],
  }
  info = {"name": "jaxchop", "version": "1.0.0", "fileFormat": "array_record", "splits": [split]}
  return {FEATURES: _json(features), INFO: _json(info)}


def _json(content: Any) -> bytes:
  return (json.dumps(content, indent=2) + "\n").encode()
