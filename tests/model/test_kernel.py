"""Which kernel computes attention, for which devices, and that a second choice is said."""

import logging
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest
from jax._src.cudnn import fused_attention_stablehlo

from jaxchop.model.attention import PRODUCT, causal_attention
from jaxchop.model.kernel import chosen, tell
from jaxchop.target import made_for, target

V5E, V6E, H100, CPU = (
  SimpleNamespace(platform=platform, device_kind=kind)
  for platform, kind in [
    ("tpu", "TPU v5 lite"),
    ("tpu", "TPU v6 lite"),
    ("gpu", "NVIDIA H100 80GB HBM3"),
    ("cpu", "cpu"),
  ]
)


def words(device, dtype="bfloat16", width=128, parted=False, spread=False) -> str:
  return chosen(device, dtype, width, parted=parted, spread=spread).words


def test_each_platform_has_its_own_and_blocks_are_of_the_chip():
  assert words(V5E) == "splash, blocks of 512" and words(V6E) == "splash, blocks of 1024"
  assert words(V5E, "float32", 64, parted=True, spread=True) == "splash, blocks of 512"
  assert words(H100) == "cuDNN" and words(CPU) == "XLA in blocks of queries"


@pytest.mark.parametrize(
  ("case", "why"),
  [
    ({"dtype": "float32"}, "it takes no float32, recover.compute_dtype bfloat16 does"),
    ({"width": 256}, "a head is 256 wide, it takes multiples of 8 up to 128"),
    ({"parted": True}, "rows hold several texts or padding"),
    ({"spread": True}, "sequences are spread over mesh.context"),
  ],
)
def test_what_cudnn_does_not_take_is_said_with_its_reason(case, why):
  assert words(H100, **case) == f"XLA in blocks of queries, not cuDNN: {why}"


def test_gpus_before_ampere_have_no_attention_of_cudnn():
  found = words(SimpleNamespace(platform="gpu", device_kind="Tesla T4"))
  assert found == "XLA in blocks of queries, not cuDNN: Tesla T4 is older than it takes"


def test_a_second_choice_is_told_once(caplog):
  tell.cache_clear()
  kernel = chosen(H100, "float32", 64, parted=False, spread=False)
  with caplog.at_level(logging.INFO, logger="jaxchop"):
    for one in (kernel, kernel, chosen(CPU, "float32", 64, parted=True, spread=False)):
      tell(one)
  assert [line.message for line in caplog.records] == [f"attention by {kernel.words}"]


def text(device, platform: str, dtype=jnp.bfloat16, kept: tuple[str, ...] = ()) -> str:
  shapes = [jax.ShapeDtypeStruct((2, 256, heads, 64), dtype) for heads in (4, 2, 2)]
  attend = jax.checkpoint(causal_attention, policy=jax.checkpoint_policies.save_only_these_names(*kept))
  program = jax.jit(jax.grad(lambda *a: jnp.sin(attend(*a).astype(jnp.float32)).sum(), (0, 1, 2)))
  with made_for(device):
    assert target().platform == device.platform
    return program.trace(*shapes).lower(lowering_platforms=(platform,)).as_text()


def test_programs_have_the_kernel_of_the_devices_that_they_are_for(monkeypatch):
  # JAX asks for the version of cuDNN of this machine, which has none.
  monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91000)
  assert "tpu_custom_call" in text(V5E, "tpu") and "cudnn$fmha" in text(H100, "cuda")
  assert "custom_call" not in text(CPU, "tpu") and "custom_call" not in text(H100, "cuda", jnp.float32)
  assert target() == jax.devices()[0]


def test_what_is_kept_by_name_is_not_computed_again():
  # Forward, the gradient of the queries, that of keys and values; and forward again.
  assert text(V5E, "tpu", kept=(PRODUCT,)).count("tpu_custom_call") == 3
  assert text(V5E, "tpu").count("tpu_custom_call") == 4
