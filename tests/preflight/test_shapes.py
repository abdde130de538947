"""What preflight lowers is what a run compiles, and it lowers for every platform."""

import jax
import pytest
from tiny_run import CONFIG, Records, settings, tiny_model

from jaxchop.hub.architectures import Shape
from jaxchop.preflight.shapes import Training, activations, plan
from jaxchop.recover import loop
from jaxchop.training import DistillConfig, MeshConfig

WAYS = {
  "alone": {},
  "mesh": {"mesh": MeshConfig(fsdp=2, tensor=2), "compute_dtype": "bfloat16", "remat": "full", "accumulate": 2},
  "adapters": {"trainable": "lora", "mesh": MeshConfig(data=2, fsdp=2)},
  "taught": {"distill": DistillConfig(weight=0.5), "mesh": MeshConfig(fsdp=4)},
  "unrolled": {"layout": "unrolled", "mesh": MeshConfig(fsdp=2, context=2)},
}


def planned(way: str):
  config = settings(steps=1, **WAYS[way])
  teacher = Shape(CONFIG, 4) if config.distill.weight else None
  return plan(Training(student=Shape(CONFIG, 3), config=config, teacher=teacher), jax.devices())


@pytest.mark.parametrize(
  "way",
  [pytest.param(way, marks=pytest.mark.slow if way in ("taught", "adapters", "unrolled") else ()) for way in WAYS],
)
def test_preflight_lowers_the_very_program_that_a_run_compiles(way, tmp_path, monkeypatch):
  seen = []

  def watched(*args, **options):
    traced = loop_traced(*args, **options)
    seen.append(traced.lower().as_text())
    return traced

  loop_traced = loop.traced_step
  monkeypatch.setattr(loop, "traced_step", watched)
  config = settings(steps=1, **WAYS[way])
  teacher = tiny_model(4, seed=1) if config.distill.weight else None
  loop.recover(tiny_model(), Records(), config, tmp_path, teacher=teacher)
  assert planned(way).traced().lower().as_text() == seen[0]


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
@pytest.mark.parametrize("way", WAYS)
def test_the_whole_step_lowers_for_every_platform_from_one_code_path(way, platform):
  text = planned(way).traced().lower(lowering_platforms=(platform,)).as_text()
  assert "func.func public @main" in text and "stablehlo.dot_general" in text


@pytest.mark.parametrize(
  "mesh", [MeshConfig(fsdp=2, tensor=2), MeshConfig(fsdp=2, context=2)], ids=["fsdp2 x tp2", "fsdp2 x context2"]
)
def test_a_step_for_cpus_leaves_no_sum_to_the_scattering_of_their_processes(mesh):
  """Gloo's gives wrong parts now and then; see model/scatter.py."""
  training = Training(student=Shape(CONFIG, 2), config=settings(mesh=mesh))
  text = plan(training, jax.devices()).traced().lower().compile().as_text()
  assert " all-reduce(" in text and "reduce-scatter" not in text


def test_more_remat_keeps_less_for_the_backward_pass_and_nothing_of_the_weights():
  kept = {}
  for remat in ("none", "dots", "full"):
    training = Training(student=Shape(CONFIG, 3), config=settings(remat=remat, mesh=MeshConfig(fsdp=4)))
    kept[remat] = activations(plan(training, jax.devices()))
  assert kept["none"] > kept["dots"] > kept["full"]
  # Of one row a device: what enters each of three layers and leaves the last one, and the gradient that comes back.
  assert kept["full"] >= 3 * 12 * CONFIG.width * 4
