"""The memory of this process: what it held at most, and that a step's is kept for the next one.

On a CPU a step's working memory is the process's own: it need not be given back and cleared anew.
"""

import ctypes
import importlib.util
import os
import platform
import resource
from pathlib import Path

# Parameters of glibc's mallopt(3).
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8
# What a chip of Cloud TPU looks like to Linux. Its library, libtpu, compiles for TPUs without one too.
_TPU_CHIPS = "accel*", "vfio/[0-9]*"


def keep_freed_memory() -> bool:
  """Has the C library keep what is freed from now on, where JAX will find a CPU only and glibc is the library.

  XLA asks for the working memory of every step anew. Blocks of that size the library takes from the system and returns
  to it at once, and the system clears each page of them: a tenth of a step of SmolLM2-135M with 4 sequences of 512.
  To be called before JAX starts its threads, which would have heaps of their own. Returns whether it is so now; the
  gain was seen in steps with JAX 0.10, not with 0.11 and 0.12.
  """
  if _accelerator() or platform.libc_ver()[0] != "glibc":
    return False
  library = ctypes.CDLL(None)
  # One heap for all threads, no block of its own for a large request, and never a smaller heap.
  return all([library.mallopt(name, value) for name, value in ((_ARENA_MAX, 1), (_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1))])


def _accelerator() -> bool:
  """Returns whether JAX may find another device than the CPU here."""
  if os.environ.get("JAX_PLATFORMS") == "cpu":
    return False
  chips = any(path for pattern in _TPU_CHIPS for path in Path("/dev").glob(pattern))
  return (chips and _installed("libtpu")) or _installed("jax_plugins")


def _installed(package: str) -> bool:
  return importlib.util.find_spec(package) is not None


def peak_bytes() -> int:
  """Returns the most host memory this process has held, in bytes."""
  status = Path("/proc/self/status")
  if status.exists():
    # Linux hands `ru_maxrss` down from the process that started this one.
    return 1024 * int(next(line for line in status.read_text().splitlines() if line.startswith("VmHWM")).split()[1])
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
