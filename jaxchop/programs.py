"""Compiled programs kept from one command to the next: the first step of a model seen before comes at once."""

import os

from jaxchop.files import cache_folder

# The programs used longest ago go when they are more bytes than that.
_MOST = 4 << 30


def keep_programs() -> None:
  """Has JAX keep what it compiles in the cache folder, unless its own variables say where.

  Called before JAX is imported; the processes that this one starts do the same.
  """
  os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache_folder() / "programs"))
  os.environ.setdefault("JAX_COMPILATION_CACHE_MAX_SIZE", str(_MOST))
