"""The recovery tests restart the same few runs many times."""

import functools
from collections.abc import Iterator

import pytest

from jaxchop.recover import program


@pytest.fixture(scope="package", autouse=True)
def traced_once() -> Iterator[None]:
  """Lets a restart in the same process find the step's trace again: for equal settings, it is the same function."""
  make_step = program.make_step
  program.make_step = functools.cache(make_step)
  yield
  program.make_step = make_step
