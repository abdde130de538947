"""What the compiler for TPUs is asked here, it is asked in a process of its own."""

import os
from pathlib import Path

import pytest


@pytest.fixture
def found_alone(monkeypatch: pytest.MonkeyPatch) -> None:
  """Lets that process find the functions of the tests in this folder."""
  monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
