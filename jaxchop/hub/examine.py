"""Takes the digest of tensors on their way to a file, and refuses what is not finite, in threads beside the writing."""

import collections
import concurrent.futures
import contextlib
from collections.abc import Generator

import numpy as np

from jaxchop.errors import JaxchopError
from jaxchop.hub import digest
from jaxchop.hub.safetensors import DTYPES

# Tensors examined at once: hashing is slower than a fast disk, and each hash runs in one thread.
_LANES = 4
# Blocks of one tensor that may wait for their hash while the next ones are read and written.
_WAITING = 16
# Of each float type: as a signed and as an unsigned integer, the smallest pattern that is infinite or not a number.
_NOT_FINITE = {
  "BF16": (np.dtype("<i2"), 0x7F80, np.dtype("<u2"), 0xFF80),
  "F16": (np.dtype("<i2"), 0x7C00, np.dtype("<u2"), 0xFC00),
  "F32": (np.dtype("<i4"), 0x7F800000, np.dtype("<u4"), 0xFF800000),
  "F64": (np.dtype("<i8"), 0x7FF0 << 48, np.dtype("<u8"), 0xFFF0 << 48),
}


class Examiner:
  """The digests of tensors given one after the other, block by block; a digest is ready when `finish` returns."""

  def __init__(self, lanes: list[concurrent.futures.ThreadPoolExecutor]):
    self.digests: dict[str, str] = {}
    self._lanes = collections.deque(lanes)
    self._open: collections.deque[_Examined] = collections.deque()

  def begin(self, name: str, dtype: str, shape: tuple[int, ...]) -> None:
    """The blocks that follow are this tensor's; waits when too many earlier ones are unfinished."""
    if len(self._open) == len(self._lanes):
      self._close_oldest()
    self._lanes.rotate(-1)
    self._open.append(_Examined(name, dtype, shape, self._lanes[0]))

  def add(self, block: np.ndarray) -> None:
    """Takes the next block of bytes; whoever gave it must leave it untouched."""
    self._open[-1].add(block)

  def finish(self) -> None:
    """Waits for all tensors; raises JaxchopError, naming the tensor, on a value that is not finite."""
    while self._open:
      self._close_oldest()

  def _close_oldest(self) -> None:
    oldest = self._open.popleft()
    self.digests[oldest.name] = oldest.digest()


@contextlib.contextmanager
def examiner() -> Generator[Examiner]:
  """Yields an Examiner whose threads live as long as the block."""
  with contextlib.ExitStack() as stack:
    yield Examiner([stack.enter_context(concurrent.futures.ThreadPoolExecutor(1)) for _ in range(_LANES)])


class _Examined:
  def __init__(self, name: str, dtype: str, shape: tuple[int, ...], lane: concurrent.futures.ThreadPoolExecutor):
    self.name, self._dtype, self._lane = name, dtype, lane
    self._hash = digest.start(DTYPES[dtype], shape)
    self._bytes = 0
    self._waiting: collections.deque[concurrent.futures.Future[None]] = collections.deque()

  def add(self, block: np.ndarray) -> None:
    self._waiting.append(self._lane.submit(self._examine, block, self._bytes))
    self._bytes += block.nbytes
    while len(self._waiting) > _WAITING:
      self._waiting.popleft().result()

  def digest(self) -> str:
    while self._waiting:
      self._waiting.popleft().result()
    return self._hash.hexdigest()

  def _examine(self, block: np.ndarray, offset: int) -> None:
    self._hash.update(block)
    if (at := first_not_finite(block, self._dtype)) is not None:
      element = offset // DTYPES[self._dtype].itemsize + at
      value = float(block.view(DTYPES[self._dtype])[at])
      raise JaxchopError(
        f"tensor {self.name}: element {element} is {value} as {DTYPES[self._dtype].name}, weights must be finite; "
        f"nothing was written: take an earlier checkpoint, or a wider dtype if the values are merely large"
      )


def first_not_finite(block: np.ndarray, dtype: str) -> int | None:
  """Returns the index of the first element of a block of bytes that is infinite or not a number, or None."""
  if dtype not in _NOT_FINITE or not block.size:
    return None
  signed, positive, unsigned, negative = _NOT_FINITE[dtype]
  # Two maxima over the bit patterns run at memory speed for every float type; isfinite of bfloat16 is ten times slower.
  if block.view(signed).max() < positive and block.view(unsigned).max() < negative:
    return None
  return int(np.argmax((block.view(signed) >= positive) | (block.view(unsigned) >= negative)))
