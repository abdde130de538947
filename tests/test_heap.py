"""A process that trains on a CPU takes its working memory from the system once."""

import subprocess
import sys
from pathlib import Path

import pytest

from jaxchop import heap

# Prints how many pages the system clears for 64 MB that the process asks for, fills and frees for the third time.
_FAULTS = """
import ctypes, resource
from jaxchop.heap import keep_freed_memory
assert {keep} == ({keep} and keep_freed_memory())
library = ctypes.CDLL(None)
library.malloc.restype = ctypes.c_void_p
for _ in range(3):
  before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
  block = ctypes.c_void_p(library.malloc(ctypes.c_size_t(2**26)))
  ctypes.memset(block, 1, 2**26)
  library.free(block)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(keep: bool) -> int:
  script = _FAULTS.format(keep=keep)
  return int(subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc is Linux's")
def test_memory_that_was_freed_is_used_again(monkeypatch):
  monkeypatch.setenv("JAX_PLATFORMS", "cpu")
  assert faults(keep=True) < faults(keep=False) / 4


@pytest.mark.parametrize(
  ("package", "device", "found"),
  [("libtpu", "accel0", True), ("libtpu", "vfio/0", True), ("libtpu", "null", False), ("jax_plugins", "null", True)],
)
def test_where_an_accelerator_may_be_found_nothing_changes(monkeypatch, tmp_path, package, device, found):
  (tmp_path / device).parent.mkdir(exist_ok=True)
  (tmp_path / device).touch()
  monkeypatch.delenv("JAX_PLATFORMS", raising=False)
  monkeypatch.setattr(heap.importlib.util, "find_spec", lambda name: name if name == package else None)
  monkeypatch.setattr(heap, "Path", lambda path: tmp_path if path == "/dev" else Path(path))
  assert heap._accelerator() == found
  assert not (found and heap.keep_freed_memory())
