"""The recovery tests restart the same few runs many times."""

import functools
from collections.abc import Iterator

import pytest

from jaxchop.recover import loop


@pytest.fixture(scope="package", autouse=True)
def traced_once() -> Iterator[None]:
  """Lets a restart in the same process find the step's trace again: for equal settings, it is the same function."""
  make_step = loop.make_step
  loop.make_step = functools.cache(make_step)
  yield
  loop.make_step = make_step
