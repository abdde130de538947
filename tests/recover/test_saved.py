"""A step that was compiled before is loaded where it is the very program, and nowhere else."""

import json
import logging

import jax
import pytest
from tiny_run import CONFIG, Records, settings, tiny_model

from jaxchop.compiler import compiler_options
from jaxchop.errors import UsageError
from jaxchop.hub.architectures import Shape
from jaxchop.preflight.shapes import Training, plan
from jaxchop.recover import loop, saved
from jaxchop.training import MeshConfig


def losses(folder, **changes) -> list[str]:
  loop.recover(tiny_model(), Records(), settings(steps=3, **changes), folder)
  return [json.loads(line)["loss_hex"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
  "mesh",
  [pytest.param(MeshConfig(fsdp=1), marks=pytest.mark.slow), MeshConfig(fsdp=2, tensor=2)],
  ids=["alone", "mesh"],
)
def test_a_run_loads_what_was_compiled_from_shapes_and_is_the_same_run(mesh, tmp_path, caplog):
  planned = plan(Training(student=Shape(CONFIG, 3), config=settings(steps=3, mesh=mesh)), jax.devices())
  with planned.set():
    lowered = planned.traced().lower()
    used = jax.devices()[: 1 if planned.mesh is None else planned.mesh.size]
    digest = saved.program_digest(lowered, compiler_options(), used)
  file = tmp_path / "step.program"
  # A program out of JAX's own cache cannot always be written again.
  with jax.enable_compilation_cache(False) if hasattr(jax, "enable_compilation_cache") else planned.set():
    saved.save(lowered.compile(), digest, file)
  assert saved.saved_digest(file) == digest
  caplog.set_level(logging.INFO, "jaxchop")
  assert losses(tmp_path / "loaded", mesh=mesh, program=str(file)) == losses(tmp_path / "compiled", mesh=mesh)
  assert "compiling anew" not in caplog.text
  losses(tmp_path / "other", mesh=mesh, program=str(file), z_loss=0.1)
  assert "is of other settings, devices or versions" in caplog.text


def test_a_file_that_is_not_there_is_named(tmp_path):
  with pytest.raises(UsageError, match=r"recover\.program: .*nowhere is no file; `jaxchop preflight --save` writes it"):
    losses(tmp_path, program=str(tmp_path / "nowhere"))


def test_what_is_no_saved_program_is_of_no_program(tmp_path):
  (tmp_path / "x").write_bytes(b"\x80\x04nothing\n")
  assert saved.saved_digest(tmp_path / "x") is None
  assert saved.saved_digest(tmp_path) is None
