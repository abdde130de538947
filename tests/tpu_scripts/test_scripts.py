"""What all scripts share: help, settings, dry runs, quoting; and the way of code and command to the workers."""

import tarfile
import time

import pytest
from tpu_cloud import NASTY, ROOT

SCRIPTS = sorted(path.stem for path in (ROOT / "tpu_scripts").glob("*.sh") if path.stem not in ("lib", "worker"))
MOUNT = "/mnt/jaxchop"
COMMAND = ["run", f"{NASTY}.yaml", "--prune.count", 'a\'b "c" $(touch pwned) %h $HOME\nd']


def arguments_of(script):
  return COMMAND if script in ("launch", "babysit", "xpk") else []


def without_errors(result):
  assert result.returncode == 0, result.stderr
  return result


@pytest.mark.parametrize("script", [*SCRIPTS, "worker"])
def test_help_says_how_to_call_it_and_needs_nothing(cloud, script):
  cloud.settings.unlink()
  result = cloud.run(["bash", str(cloud.checkout / "tpu_scripts" / f"{script}.sh"), "--help"])
  assert result.returncode == 0 and result.stdout.startswith(f"{script}.sh ") and not result.stderr
  assert cloud.calls == []


@pytest.mark.parametrize("script", SCRIPTS)
def test_an_unknown_option_or_too_many_arguments_is_wrong_usage(cloud, script):
  for wrong in (["--nonsense"], ["a", "b"]):
    result = cloud.call(script, *wrong)
    assert result.returncode == 2 and "--help says more" in result.stderr
    assert f"{wrong[0]}: " in result.stderr or f"{wrong[-1]}: " in result.stderr
  assert cloud.calls == []


@pytest.mark.parametrize(
  ("changes", "said"),
  [
    ({"PROJECT": '"my-project"'}, "PROJECT is '\"my-project\"'; it is a project's id, without quotes"),
    ({"ZONE": "$(touch pwned)"}, "ZONE is '$(touch pwned)'"),
    ({"NAME": ""}, "NAME is ''"),
    ({"BUCKET": "gs://b"}, "it is a bucket's name, without gs://"),
    ({"RUN": "../other"}, "RUN is '../other'"),
    ({"TIER": "cheap"}, "it is spot or on-demand"),
    ({"KIND": "vm", "SLICES": 2}, "several slices need KIND=queued"),
    ({"ZOEN": "x"}, "ZOEN is no setting; there are PROJECT ZONE"),
  ],
)
def test_a_wrong_setting_is_named_and_nothing_is_run(cloud, changes, said):
  cloud.configure(**changes)
  result = cloud.call("teardown")
  assert result.returncode == 2 and said in result.stderr
  assert cloud.calls == []


def test_absent_settings_are_named(cloud):
  cloud.settings.unlink()
  result = cloud.call("teardown")
  assert (
    result.returncode == 2 and f"{cloud.settings}: no such file; copy tpu_scripts/settings.example" in result.stderr
  )


def test_the_example_of_settings_is_sound(cloud):
  cloud.settings.write_text((ROOT / "tpu_scripts" / "settings.example").read_text())
  without_errors(cloud.call("create", dry=True))


@pytest.mark.parametrize(
  ("script", "settings"),
  [(script, {}) for script in SCRIPTS if script != "xpk"]
  + [(script, {"KIND": "vm"}) for script in ("teardown", "babysit")]
  + [(script, {"SLICES": 3, "SSH_FLAGS": "--internal-ip"}) for script in ("create", "sync", "logs")],
)
def test_a_dry_run_prints_what_a_shell_runs_alike(cloud, script, settings):
  cloud.configure(**settings)

  def afresh():
    cloud.requests.clear()
    cloud.nodes.clear()
    if script not in ("create", "babysit", "fetch"):
      without_errors(cloud.call("create"))
    cloud.calls.clear()

  afresh()
  dry = without_errors(cloud.call(script, *arguments_of(script), dry=True))
  assert cloud.calls == []
  without_errors(cloud.call(script, *arguments_of(script)))
  real = list(cloud.calls)
  afresh()
  cloud.run(["bash", "-c", dry.stdout])
  assert cloud.calls == real


def test_the_command_reaches_jaxchop_as_it_was_given(cloud):
  cloud.real_workers = True
  without_errors(cloud.call("create"))
  without_errors(cloud.call("setup"))
  without_errors(cloud.call("sync"))
  without_errors(cloud.call("launch", *COMMAND))
  for worker in range(2):
    wait_for(cloud.home(worker=worker) / ".jaxchop" / "exit")
    assert cloud.launched(worker=worker) == [*COMMAND, "--out", f"{MOUNT}/runs/my-run"]
    assert (cloud.home(worker=worker) / "working_folder").read_text().endswith("/jaxchop\n")


def test_the_code_that_arrives_is_what_git_sees(cloud):
  archive = cloud.folder / "with space" / "code.tar.gz"
  script = cloud.checkout / "tpu_scripts" / "sync.sh"
  without_errors(cloud.run(["bash", str(script), "--pack", "with space/code.tar.gz"]))
  with tarfile.open(archive) as tar:
    names = {name.removeprefix("./") for name in tar.getnames()}
  assert {"tpu_scripts/lib.sh", f"{NASTY}.yaml", ".gitignore"} <= names
  assert not {"ignored", "deleted"} & names and not any(name.startswith(".git/") for name in names)


@pytest.mark.parametrize(
  ("arguments", "said"),
  [
    ([], "say what to do"),
    (["score", "x"], "score: run and recover"),
    (["run", "absent.yaml"], "absent.yaml: no such file in"),
    (["run", "/elsewhere/x.yaml"], "/elsewhere/x.yaml: no such file in"),
    (["run", f"{NASTY}.yaml", "--out", "x"], f"--out: the run folder is {MOUNT}/runs/my-run; change RUN"),
    (["recover", "m", "-ox"], "-ox: the run folder is"),
  ],
)
def test_a_command_that_cannot_work_is_refused_before_anything_costs(cloud, arguments, said):
  for script in ("launch", "babysit"):
    result = cloud.call(script, *arguments)
    assert result.returncode == 2 and said in result.stderr
  assert cloud.calls == []


def test_recipes_may_lie_in_the_bucket(cloud):
  result = without_errors(cloud.call("launch", "run", f"{MOUNT}/recipes/x.yaml", dry=True))
  assert "/mnt/jaxchop/recipes/x.yaml" in result.stdout


@pytest.mark.parametrize("script", ["setup", "sync", "launch", "logs"])
def test_what_needs_a_tpu_says_who_makes_it(cloud, script):
  result = cloud.call(script, *arguments_of(script))
  assert result.returncode == 1 and "chop in us-west4-a is absent; create.sh makes it ready" in result.stderr
  assert cloud.did() == []


def test_setup_waits_for_ssh(cloud):
  without_errors(cloud.call("create"))
  cloud.rule(" scp ", err="ssh: connect: Connection refused\n", times=3)
  without_errors(cloud.call("setup"))
  cloud.rule(" scp ", err="ssh: connect: Connection refused\n", times=9)
  result = cloud.call("setup")
  assert result.returncode == 75 and "not every worker of chop answers ssh" in result.stderr


def test_a_slice_that_gcloud_leaves_out_is_noticed(cloud):
  cloud.configure(SLICES=2)
  without_errors(cloud.call("create"))
  cloud.rule(" ssh ", code=0, err="WARNING: Could not prepare all 2 nodes, attempting to ssh into the rest.\n")
  result = cloud.call("launch", *COMMAND)
  assert result.returncode == 75 and "was not started on every worker" in result.stderr


@pytest.mark.parametrize(
  ("arguments", "call"),
  [
    ([], ["gs://my-bucket/runs/my-run", "runs/my-run", "--exclude=^(checkpoints|data)/"]),
    (["--everything", NASTY], ["gs://my-bucket/runs/my-run", NASTY]),
  ],
)
def test_fetch_copies_the_run_folder_without_a_tpu(cloud, arguments, call):
  without_errors(cloud.call("fetch", *arguments))
  assert cloud.calls == [["storage", "rsync", *call[:2], "--project=my-project", "--recursive", *call[2:]]]
  assert (cloud.folder / call[1]).is_dir()


def test_logs_follow_process_0_or_show_all(cloud):
  cloud.configure(SLICES=2)
  without_errors(cloud.call("create"))
  without_errors(cloud.call("setup"))
  cloud.rule("follow", out="step 1\n")
  assert without_errors(cloud.call("logs")).stdout == "step 1\n"
  assert {"--worker=0", "--node=0", "--command=bash jaxchop-worker.sh follow"} <= set(cloud.calls[-1])
  shown = without_errors(cloud.call("logs", "--all")).stdout.splitlines()
  assert sorted(shown)[-4:] == [
    f"jaxchop-status chop-{node}-w{worker} idle - -" for node in (0, 1) for worker in (0, 1)
  ]


def test_xpk_builds_attaches_once_and_starts(cloud):
  cloud.configure(CLUSTER="my-cluster", IMAGE="us-docker.pkg.dev/my-project/r/jaxchop:1", SLICES=2)
  noted, attached = cloud.folder / "noted", cloud.folder / "attached"
  for name in ("docker", "xpk"):
    note = f'printf "%s\\0" {name} "$@" >>"{noted}"; printf "\\n\\0" >>"{noted}"'
    cloud.tool(name, f'#!/usr/bin/env bash\n{note}\n[[ $2 != list ]] || cat "{attached}"\n')
  attached.write_text("NAME TYPE\n")

  def calls():
    found = [call.split("\0")[:-1] for call in noted.read_text().split("\n\0")[:-1]]
    noted.unlink()
    return found

  dry = without_errors(cloud.call("xpk", *COMMAND, dry=True))
  assert not noted.exists()
  without_errors(cloud.call("xpk", *COMMAND))
  real = calls()
  cloud.run(["bash", "-c", dry.stdout])
  assert calls() == real
  assert [call[:3] for call in real] == [
    ["docker", "build", "--tag"],
    ["docker", "push", "us-docker.pkg.dev/my-project/r/jaxchop:1"],
    ["xpk", "storage", "list"],
    ["xpk", "storage", "attach"],
    ["xpk", "workload", "create"],
  ]
  assert real[0][-1] == str(cloud.checkout)
  workload = real[-1]
  assert {"--workload=my-run", "--tpu-type=v5litepod-16", "--num-slices=2", "--restart-on-exit-codes=75"} <= set(
    workload
  )
  (command,) = [word.removeprefix("--command=") for word in workload if word.startswith("--command=")]
  heard = cloud.run(["bash", "-c", f'jaxchop() {{ printf "%s\\0" "$@"; }}; {command}'])
  assert heard.stdout.split("\0")[:-1] == [*COMMAND, "--out", f"{MOUNT}/runs/my-run"]
  attached.write_text("NAME TYPE\njaxchop-my-bucket gcsfuse\n")
  without_errors(cloud.call("xpk", *COMMAND))
  assert [call[:3] for call in calls()] == [call[:3] for call in real if "attach" not in call]


def wait_for(path):
  end = time.monotonic() + 30
  while not path.exists():
    assert time.monotonic() < end
    time.sleep(0.02)
