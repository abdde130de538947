"""Answers of the compiler are kept for the tests alone."""

from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("JAXCHOP_CACHE", str(tmp_path_factory.mktemp("cache")))
    yield
