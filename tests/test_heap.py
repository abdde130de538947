"""A process that trains on a CPU takes its working memory from the system once."""

import subprocess
import sys

import jax
import pytest

from jaxchop import heap

# Prints how many pages the system clears for a program that works on 128 MB, when it runs for the third time.
_FAULTS = """
import resource
from jaxchop.heap import keep_freed_memory
assert {keep} == ({keep} and keep_freed_memory())
import jax, jax.numpy as jnp
large = jax.jit(lambda x: jnp.sort(jnp.outer(x, x), axis=0).sum())
x = jnp.arange(5000.0)
for _ in range(3):
  before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
  large(x).block_until_ready()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(keep: bool) -> int:
  script = _FAULTS.format(keep=keep)
  return int(subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc is Linux's")
@pytest.mark.skipif(jax.__version_info__ >= (0, 11), reason="JAX 0.11 and 0.12 were seen not to")
def test_memory_that_was_freed_is_used_again():
  assert faults(keep=True) < faults(keep=False) / 4


def test_where_an_accelerator_may_be_found_nothing_changes(monkeypatch):
  monkeypatch.delenv("JAX_PLATFORMS", raising=False)
  monkeypatch.setattr(heap.importlib.util, "find_spec", lambda name: name == "libtpu")
  assert not heap.keep_freed_memory()
