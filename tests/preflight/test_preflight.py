"""The whole command on a tiny model, by the real TPU compiler on this machine's CPU."""

import json
from pathlib import Path

import pytest
import tiny_models

from jaxchop.cli import main
from jaxchop.errors import UsageError
from jaxchop.parallel import topology

CONFIGS = Path(__file__).parents[2] / "configs"
RECIPE = """
out: runs/x
model: {model}
prune: {{pattern: tail, count: 3}}
recover: {{steps: 100, batch_size: 6, accumulate: {accumulate}, seq_len: 32, compute_dtype: bfloat16, remat: full}}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
  made = tmp_path_factory.mktemp("model")
  (made / "config.json").write_text(json.dumps(tiny_models.CONFIG))
  return made


def preflight(folder: Path, capfd, *options: str, accumulate: int = 1) -> tuple[int, dict]:
  recipe = folder / "recipe.yaml"
  recipe.write_text(RECIPE.format(model=folder, accumulate=accumulate))
  code = main(["preflight", str(recipe), "--topology", "v5e:1x1", "--json", *options])
  out = capfd.readouterr().out
  return code, json.loads(out) if out else {}


def test_the_answer_is_one_object_with_the_promised_keys_and_is_kept(folder, capfd):
  code, found = preflight(folder, capfd, "--price", "2.5")
  assert code == 0 and found["fits"] and not found["cached"]
  hbm = found["hbm"]
  assert sum(size for name, size in hbm.items() if not name.endswith("_bytes")) == hbm["peak_bytes"]
  assert 0 < hbm["peak_bytes"] < hbm["limit_bytes"] == int(15.75 * 2**30)
  # Master weights, and two moments of each with a few counters.
  assert 2 * hbm["parameters"] <= hbm["optimizer"] < 2 * hbm["parameters"] + 100
  assert found["flops_per_step"] > found["model_flops_per_step"] > 0
  assert found["collectives"] == {} and found["links"] == {"ici": 0, "dcn": 0}
  assert found["step_seconds_estimate"] == pytest.approx(sum(found["seconds_by_resource"].values()))
  assert found["tokens"] == 100 * 6 * 32 and found["tokens_per_second"] > 0
  # One layer: forward, the gradient of the queries, that of keys and values; of a single one nothing is computed again.
  assert found["kernels_without_estimate"] == 3 and found["seconds_by_resource"]["attention kernels"] > 0
  assert found["price"] == pytest.approx(2.5 * found["chip_hours"])
  assert 0 < found["compile_seconds"] < 900 and 0 < found["mfu_bound"] < 1
  _, again = preflight(folder, capfd, "--price", "2.5")
  assert again["cached"] and {**again, "cached": False, "trace_seconds": 0} == {**found, "trace_seconds": 0}


def test_a_setting_that_cannot_be_is_answered_with_one_that_compiles(folder, capfd):
  code, found = preflight(folder, capfd, "--recover.mesh.fsdp", "2")
  assert code == 0 and not found["fits"]
  assert found["refused"].startswith("mesh: data 1, fsdp 2, context 1, tensor 1 take 2 devices, there are 1")
  # One device alone: the program of the test above.
  assert found["nearest"]["fits"] and found["nearest"]["cached"]


def test_a_name_that_is_no_slice_is_wrong_usage(folder, capfd):
  recipe = folder / "recipe.yaml"
  recipe.write_text(RECIPE.format(model=folder, accumulate=1))
  assert main(["preflight", str(recipe), "--topology", "v5e-16"]) == 2
  said = capfd.readouterr().err
  assert "--topology is v5e-16; name a slice as one of v5e:2x2" in said and "Compiling" not in said


def test_without_the_compiler_it_says_what_to_install(monkeypatch):
  monkeypatch.setattr(topology.importlib.util, "find_spec", lambda name: None)
  with pytest.raises(UsageError, match=r"pip install 'jaxchop\[tpu\]' \(no TPU is needed\)"):
    topology.require_compiler()


@pytest.mark.slow
def test_fewer_layers_other_meshes_and_other_programs_stand_beside_the_step(folder, capfd):
  options = ("--search", "--sweep-layers", "--programs", "held_out", "evaluation", "decode")
  code, found = preflight(folder, capfd, *options)
  assert code == 0
  tried = found["settings_tried"]
  assert [each["change"] for each in tried if each["fits"]] and len({each["change"] for each in tried}) == len(tried)
  seconds = [each["step_seconds_estimate"] for each in tried if each["fits"]]
  assert seconds == sorted(seconds)
  assert [each["removed"] for each in found["sweep"]] == [0, 2, 3]
  for cost in ("model_flops_per_step", "step_seconds_estimate"):
    steps = [each[cost] for each in found["sweep"]]
    assert steps == sorted(steps, reverse=True)
  assert {name for name, each in found["programs"].items() if each["fits"]} == {"held_out", "evaluation", "decode"}
  assert 0 < found["programs"]["decode"]["seconds_estimate"] < 1


@pytest.mark.slow
def test_two_slices_sum_up_over_the_slow_network(folder, capfd):
  options = ("--topology", "v5e:2x2", "--slices", "2", "--recover.mesh.data", "2", "--recover.batch_size", "8")
  code, found = preflight(folder, capfd, *options)
  assert code == 0 and found["fits"] and found["chips"] == 8 and found["mesh"] == {"data": 2, "fsdp": 4}
  assert found["links"]["dcn"] > 0 and found["links"]["ici"] > 0
  assert found["kernels_without_estimate"] >= 3


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_shipped_recipe_fits_its_slice_and_an_impossible_one_is_helped(capfd):
  recipe = str(CONFIGS / "slices" / "llama-2-7b-v5e-4x4.yaml")
  assert main(["preflight", recipe, "--topology", "v5e:4x4", "--json"]) == 0
  found = json.loads(capfd.readouterr().out)
  assert found["fits"] and found["layers"] == 24 and found["chips"] == 16
  assert 0.2 < found["mfu_bound"] < 1
  assert main(["preflight", recipe, "--topology", "v5e:2x2", "--json"]) == 0
  found = json.loads(capfd.readouterr().out)
  assert not found["fits"] and found["hbm"]["peak_bytes"] > found["hbm"]["limit_bytes"]
  assert found["nearest"]["fits"]
