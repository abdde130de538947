"""A checkout with a difficult name, and a cloud that the scripts work on."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tpu_cloud import NASTY, ROOT, Cloud


@pytest.fixture(scope="session")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
  """The scripts in a git checkout, with a recipe, a file that git ignores and one that was deleted."""
  root = tmp_path_factory.mktemp("checkouts") / NASTY
  shutil.copytree(ROOT / "tpu_scripts", root / "tpu_scripts")
  (root / f"{NASTY}.yaml").write_text("out: nowhere\n")
  (root / ".gitignore").write_text("/runs/\n/ignored\n")
  for name in ("ignored", "deleted"):
    (root / name).write_text(name)
  for command in (["init", "--quiet"], ["add", "."]):
    subprocess.run(["git", "-C", str(root), *command], check=True)
  (root / "deleted").unlink()
  return root


@pytest.fixture
def cloud(tmp_path: Path, checkout: Path) -> Iterator[Cloud]:
  cloud = Cloud(tmp_path, checkout)
  yield cloud
  cloud.close()
  # Nothing that was only a name has been run.
  assert not list(tmp_path.rglob("pwned")) and not list(checkout.rglob("pwned"))
