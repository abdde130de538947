"""create.sh and teardown.sh: what they make of every state that a TPU may be in, and of what gcloud complains of."""

import shutil

import pytest

QUOTA = (
  "Quota limit 'TPUV5sPreemptibleLitepodPerProjectPerZoneForTPUAPI' has been exceeded. Limit: 0 in zone us-west4-a."
)
VERSION = "--runtime-version=v2-alpha-tpuv5-lite"
STOCKOUT = 'There is no more capacity in the zone "us-west4-a"; you can try in another zone (code 8)'


@pytest.mark.parametrize(
  ("settings", "flags"),
  [
    ({}, {"--node-id=chop", VERSION, "--spot"}),
    ({"TIER": "on-demand"}, {"--node-id=chop", VERSION}),
    ({"SLICES": 2}, {"--node-count=2", "--node-prefix=chop", VERSION, "--spot"}),
    ({"KIND": "vm"}, {"--version=v2-alpha-tpuv5-lite", "--spot"}),
    ({"KIND": "vm", "TIER": "on-demand"}, {"--version=v2-alpha-tpuv5-lite"}),
    (
      {"CREATE_FLAGS": "--network=n;x --labels=team=x"},
      {"--node-id=chop", VERSION, "--network=n;x", "--labels=team=x", "--spot"},
    ),
  ],
)
def test_asks_for_what_the_settings_say(cloud, settings, flags):
  cloud.configure(**settings)
  result = cloud.call("create")
  assert result.returncode == 0, result.stderr
  (create,) = [call for call in cloud.calls if "create" in call]
  group = "tpu-vm" if settings.get("KIND") == "vm" else "queued-resources"
  assert create[:5] == ["compute", "tpus", group, "create", "chop"]
  always = {"--project=my-project", "--zone=us-west4-a", "--quiet", "--accelerator-type=v5litepod-16"}
  always |= {"--labels=jaxchop_owner=me", "--scopes=https://www.googleapis.com/auth/cloud-platform"}
  assert set(create[5:]) == always | flags
  # The last one counts.
  assert [flag for flag in create if flag.startswith("--labels")][-1] == "--labels=jaxchop_owner=me"


def test_waits_in_the_queue_and_tells_each_state_once(cloud):
  states = ["WAITING_FOR_RESOURCES"] * 3 + ["PROVISIONING", "ACTIVE"]
  cloud.rule(" describe chop .*state.state", after=1, becomes={"requests": {"chop": {"state": states}}})
  result = cloud.call("create")
  assert result.returncode == 0, result.stderr
  assert result.stderr.count("WAITING_FOR_RESOURCES") == result.stderr.count("PROVISIONING") == 1
  assert cloud.did() == ["create"]


@pytest.mark.parametrize("state", ["WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"])
def test_goes_on_waiting_for_an_earlier_request(cloud, state):
  cloud.requests["chop"] = {"state": [state, "ACTIVE"], "owner": "me"}
  cloud.nodes["chop"] = {"state": "READY", "owner": "me"}
  assert cloud.call("create").returncode == 0
  assert cloud.did() == []


@pytest.mark.parametrize("states", [["FAILED"], ["SUSPENDED"], ["SUSPENDING", "SUSPENDED"]])
def test_replaces_a_request_that_is_lost(cloud, states):
  cloud.requests["chop"] = {"state": states, "owner": "me", "why": "for reasons"}
  result = cloud.call("create")
  assert result.returncode == 0, result.stderr
  assert f"chop in us-west4-a is {states[-1]} (for reasons); deleting it" in result.stderr
  assert cloud.did() == ["delete", "create"]


@pytest.mark.parametrize("state", ["PREEMPTED", "TERMINATED", "STOPPED", "UNKNOWN"])
def test_replaces_a_node_that_is_lost(cloud, state):
  cloud.configure(KIND="vm")
  cloud.nodes["chop"] = {"state": state, "owner": "me"}
  assert cloud.call("create").returncode == 0
  assert cloud.did() == ["delete", "create"]


@pytest.mark.parametrize("other", [None, {"state": "PREEMPTED", "owner": "me"}])
def test_replaces_half_created_slices(cloud, other):
  cloud.configure(SLICES=2)
  cloud.requests["chop"] = {"state": "ACTIVE", "owner": "me", "nodes": ["chop-0", "chop-1"]}
  cloud.nodes |= {"chop-0": {"state": "READY", "owner": "me"}} | ({"chop-1": other} if other else {})
  result = cloud.call("create")
  assert result.returncode == 0, result.stderr
  assert f"chop-1 of chop in us-west4-a is {other['state'] if other else 'absent'}" in result.stderr
  assert cloud.did() == ["delete", "create"]
  assert cloud.nodes.keys() == {"chop-0", "chop-1"}


def test_deletes_a_slice_that_a_failed_request_leaves(cloud):
  cloud.configure(SLICES=2)
  nodes = {"chop-0": {"state": "READY", "owner": "me"}}
  cloud.requests["chop"] = {"state": "FAILED", "owner": "me", "nodes": list(nodes), "leaves_nodes": True}
  cloud.nodes |= nodes
  assert cloud.call("teardown").returncode == 0
  assert cloud.did() == ["delete", "delete"]
  assert cloud.requests == cloud.nodes == {}


@pytest.mark.parametrize(
  ("kind", "complaint", "code", "said"),
  [
    ("queued", QUOTA, 1, "the quota of my-project in us-west4-a does not allow 1 × v5litepod-16 (spot); ask for more"),
    ("vm", QUOTA, 1, "the quota of my-project in us-west4-a does not allow"),
    ("vm", STOCKOUT, 75, "not now, as said above; babysit.sh goes on trying"),
    ("vm", "PERMISSION_DENIED: no", 1, "chop was not created: gcloud said why above"),
    ("queued", "WARNING: it does not match the quota project.\nERROR: no", 1, "gcloud said why above"),
    ("queued", "503 The service is currently unavailable.", 75, "not now"),
  ],
)
def test_tells_quota_from_stockout_from_the_rest(cloud, kind, complaint, code, said):
  cloud.configure(KIND=kind)
  cloud.rule(" create ", err=f"ERROR: {complaint}\n")
  result = cloud.call("create")
  assert result.returncode == code
  assert complaint in result.stderr and said in result.stderr
  assert cloud.did() == ["create"]


@pytest.mark.parametrize(("why", "code"), [(QUOTA, 1), (STOCKOUT, 75), ("something else", 1)])
def test_tells_why_a_request_failed_in_the_queue_and_what_is_left(cloud, why, code):
  failed = {"chop": {"state": "FAILED", "owner": "me", "why": why}}
  cloud.rule(" create ", code=0, becomes={"requests": failed})
  result = cloud.call("create")
  assert result.returncode == code
  assert why in result.stderr and "it stays so until create.sh is called again" in result.stderr
  # The same call again clears up first.
  assert cloud.call("create").returncode == 0
  assert cloud.did() == ["create", "delete", "create"]


def test_tells_of_what_a_failed_creation_leaves(cloud):
  cloud.configure(KIND="vm")
  cloud.rule(" create ", err="ERROR: internal\n", becomes={"nodes": {"chop": {"state": "CREATING", "owner": "me"}}})
  result = cloud.call("create")
  assert result.returncode == 1
  assert "chop in us-west4-a is CREATING: left of this attempt" in result.stderr


@pytest.mark.parametrize("script", ["create", "setup", "sync", "launch", "logs", "teardown"])
@pytest.mark.parametrize(("kind", "owner"), [("queued", "you"), ("vm", "")])
def test_leaves_alone_what_it_did_not_create(cloud, script, kind, owner):
  cloud.configure(KIND=kind)
  for group in (cloud.requests, cloud.nodes):
    group["chop"] = {"state": "SUSPENDED" if kind == "queued" else "PREEMPTED", "owner": owner}
  result = cloud.call(script, *(["run"] if script == "launch" else []))
  assert result.returncode == 1
  assert f"is not ours: its label jaxchop_owner is '{owner}', not 'me'; nothing was changed" in result.stderr
  assert cloud.did() == []


def test_leaves_alone_a_node_that_bears_the_name_of_ours(cloud):
  cloud.nodes["chop"] = {"state": "READY", "owner": "you"}
  assert cloud.call("teardown").returncode == 1
  assert cloud.did() == [] and "chop" in cloud.nodes


@pytest.mark.parametrize("settings", [{"KIND": "vm"}, {}, {"SLICES": 2}])
def test_teardown_twice(cloud, settings):
  cloud.configure(**settings)
  cloud.call("create")
  result = cloud.call("teardown")
  assert result.returncode == 0, result.stderr
  assert "chop in us-west4-a is deleted; gs://my-bucket/runs/my-run stays" in result.stderr
  result = cloud.call("teardown")
  assert result.returncode == 0 and "nothing is left to delete" in result.stderr
  assert cloud.did().count("delete") == 1
  assert cloud.requests == cloud.nodes == {}


def test_a_project_that_does_not_exist_is_no_absent_tpu(cloud):
  cloud.rule(" describe chop ", err="ERROR: NOT_FOUND: Project 'my-project' not found or deleted.\n")
  result = cloud.call("teardown")
  assert result.returncode == 1 and "chop cannot be looked at" in result.stderr


def test_what_vanishes_before_it_is_deleted_is_deleted(cloud):
  cloud.configure(KIND="vm")
  cloud.nodes["chop"] = {"state": "PREEMPTED", "owner": "me"}
  cloud.rule(" delete ", becomes={"nodes": {"chop": None}})
  result = cloud.call("teardown")
  assert result.returncode == 0 and "chop in us-west4-a is deleted" in result.stderr


def test_without_gcloud_nothing_is_called_absent(cloud):
  tools = cloud.folder / "tools"
  tools.mkdir()
  for name in ("bash", "basename", "dirname", "mktemp", "rm"):
    (tools / name).symlink_to(shutil.which(name) or name)
  cloud.environment["PATH"] = str(tools)
  result = cloud.call("teardown")
  assert result.returncode == 1 and "gcloud is not on PATH" in result.stderr


def test_an_unknown_state_is_not_guessed_at(cloud):
  cloud.requests["chop"] = {"state": "PUZZLED", "owner": "me"}
  result = cloud.call("create")
  assert result.returncode == 1 and "is PUZZLED, a state that these scripts do not know" in result.stderr


@pytest.mark.parametrize(("bucket", "said"), [(None, "cannot be used"), ("", "no hierarchical namespace")])
def test_refuses_a_bucket_that_no_run_folder_can_lie_in(cloud, bucket, said):
  cloud.bucket = bucket
  result = cloud.call("create")
  assert result.returncode == 1
  assert said in result.stderr and "gcloud storage buckets create gs://my-bucket" in result.stderr
  assert "--location=us-west4 " in result.stderr
  assert cloud.did() == []
