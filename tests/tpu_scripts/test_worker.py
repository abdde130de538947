"""worker.sh, on home folders that stand for workers, with stand-ins for systemd, gcsfuse and uv."""

import shlex
import shutil
import time

import pytest
from tpu_cloud import NASTY, ROOT, checksum

OUT = "/mnt/jaxchop/runs/my-run"
COMMAND = ["run", NASTY, "--text", "two\nlines", "--out", OUT]


class Worker:
  def __init__(self, cloud):
    self.cloud, self.home = cloud, cloud.home()
    self.home.mkdir(parents=True)
    shutil.copy(ROOT / "tpu_scripts" / "worker.sh", self.home / "jaxchop-worker.sh")
    cloud.nodes["chop"] = {}

  def __call__(self, *words):
    process = self.cloud.on_worker(self.home, shlex.join(["bash", "jaxchop-worker.sh", *words]))
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err

  def done(self, *words):
    code, out, err = self(*words)
    assert code == 0, err
    return out

  def prepared(self):
    archive = self.home / "code.tar.gz"
    self.cloud.run(["bash", str(self.cloud.checkout / "tpu_scripts" / "sync.sh"), "--pack", str(archive)])
    self.done("setup", "my-bucket")
    self.done("install", "code.tar.gz")
    return self

  def waits(self, state):
    """Waits until the run is in this state and returns what the status says after it."""
    end = time.monotonic() + 30
    while (said := self.done("status").split())[2] != state:
      assert time.monotonic() < end, said
      time.sleep(0.02)
    return said[3:]


@pytest.fixture
def worker(cloud):
  return Worker(cloud)


def test_setup_mounts_the_bucket_so_that_a_checkpoint_is_safe_there_and_does_so_once(worker):
  for _ in range(2):
    worker.done("setup", "my-bucket")
  (mount,) = (worker.home / "units" / "commands").read_text().splitlines()
  flags = "--metadata-cache-ttl-secs=0 --metadata-cache-negative-ttl-secs=0 --enable-streaming-writes=false"
  assert mount == f"gcsfuse --foreground {flags} --temp-dir={worker.home}/.jaxchop my-bucket /mnt/jaxchop"
  # With pip, by which jaxchop fetches its built-in model.
  assert (worker.home / "jaxchop-venv" / "bin" / "pip").exists()
  assert len((worker.home / "uv").read_text().splitlines()) == 1
  code, _, err = worker("setup", "other-bucket")
  assert code == 1 and "gs://my-bucket is mounted, not gs://other-bucket" in err


def test_a_bucket_that_cannot_be_mounted_is_told_of(worker):
  code, _, err = worker("setup", "forbidden")
  assert code == 1
  assert "journal: 403 forbidden" in err and "gs://forbidden was not mounted; may the TPU's service account" in err


@pytest.mark.parametrize("old", [False, True])
def test_gcsfuse_is_installed_where_it_is_absent_or_old(worker, old):
  for name in ("curl", "lsb_release", "apt-get"):
    worker.cloud.tool(name, f'#!/bin/sh\necho {name} "$@" >>"$HOME/noted"\necho jammy\n')
  stand_ins = worker.cloud.folder / "less"
  stand_ins.mkdir()
  for path in (ROOT / "tests" / "tpu_scripts" / "stand_ins").iterdir():
    if path.name != "gcsfuse":
      (stand_ins / path.name).symlink_to(path)
  if old:
    worker.cloud.tool("gcsfuse", "#!/bin/sh\necho --foreground: …\n")
  # The first folder on PATH is the one of all stand-ins.
  process = worker.cloud.on_worker(worker.home, f"PATH={stand_ins}:${{PATH#*:}} bash jaxchop-worker.sh setup b")
  process.communicate(timeout=60)
  noted = (worker.home / "noted").read_text()
  assert "install --yes gcsfuse" in noted and "DPkg::Lock::Timeout" in noted
  assert "gcsfuse-jammy main" in (worker.home / "gcsfuse.list").read_text()


def test_the_command_arrives_to_the_letter_and_its_end_is_kept(worker):
  worker.prepared()
  assert worker.done("status") == "jaxchop-status chop-w0 idle - -\n"
  worker.cloud.ends(3)
  worker.done("start", *COMMAND)
  assert worker.waits("ended") == ["3", checksum(COMMAND)]
  assert (worker.home / "arguments").read_text().split("\0")[:-1] == COMMAND
  said = worker.done("log").splitlines()
  assert said[0].startswith("jaxchop-status chop-w0 ended 3 ") and said[-1] == "ends with 3"
  log = worker.cloud.folder / "bucket" / "runs" / "my-run" / "logs" / "chop-w0.log"
  assert "step 1 of 0" in log.read_text()
  # Launched again, the end before it no longer counts.
  worker.cloud.ends(3, "hang")
  worker.done("start", *COMMAND)
  assert worker.done("status").split()[2] == "running"


def test_the_run_is_a_service_that_outlives_ssh_and_ends_before_the_bucket(worker):
  worker.prepared()
  worker.cloud.ends("hang")
  worker.done("start", *COMMAND)
  options = set((worker.home / "units" / "options").read_text().splitlines())
  needed = {"After=jaxchop-bucket.service", "KillMode=mixed", "LimitMEMLOCK=infinity"}
  assert {"--collect", *(f"--property={words}" for words in needed)} <= options
  assert worker.waits("running") == ["-", checksum(COMMAND)]
  # The same again changes nothing; another one, and other code, are refused.
  worker.done("start", *COMMAND)
  assert (worker.cloud.folder / "launches-chop-0").read_text() == "x\n"
  code, _, err = worker("start", "run", "other")
  assert code == 1 and "another command runs here" in err
  worker.done("install", "code.tar.gz")
  (worker.home / "code.tar.gz").write_bytes(b"other")
  code, _, err = worker("install", "code.tar.gz")
  assert code == 1 and "its code is not replaced under it" in err


def test_code_of_which_the_installation_failed_is_not_taken_for_the_one_before(worker):
  worker.prepared()
  before = (worker.home / "uv").read_text()
  first = (worker.home / "code.tar.gz").read_bytes()
  (worker.home / "code.tar.gz").write_bytes(b"broken")
  assert worker("install", "code.tar.gz")[0] != 0
  (worker.home / "code.tar.gz").write_bytes(first)
  worker.done("install", "code.tar.gz")
  assert len((worker.home / "uv").read_text().splitlines()) == len(before.splitlines()) + 1


def test_stop_lets_it_save_and_keeps_its_exit_code(worker):
  worker.prepared()
  worker.cloud.ends("hang")
  worker.done("start", *COMMAND)
  end = time.monotonic() + 30
  while not (worker.home / "hangs").exists():
    assert time.monotonic() < end
  worker.done("stop")
  assert worker.waits("ended") == ["75", checksum(COMMAND)]
  assert "SIGTERM: saving" in worker.done("log")
  worker.done("stop")


def test_what_is_killed_without_a_word_is_broken(worker):
  worker.prepared()
  worker.cloud.ends("hang")
  worker.done("start", *COMMAND)
  worker.waits("running")
  worker.cloud.run(
    ["bash", "-c", 'kill -KILL -- "-$0"', (worker.home / "units" / "jaxchop-run.pid").read_text().strip()]
  )
  assert worker.waits("broken") == ["-", checksum(COMMAND)]


def test_a_start_without_bucket_or_code_says_what_is_missing(worker):
  code, _, err = worker("start", "run")
  assert code == 1 and "the bucket is not mounted at /mnt/jaxchop; call setup.sh" in err
  worker.done("setup", "my-bucket")
  code, _, err = worker("start", "run")
  assert code == 1 and "jaxchop is not installed; call sync.sh" in err


@pytest.mark.parametrize("words", [[], ["setup"], ["install"], ["nonsense"]])
def test_wrong_usage_is_2(worker, words):
  code, out, err = worker(*words)
  assert code == 2 and not out and "worker.sh setup BUCKET" in err
