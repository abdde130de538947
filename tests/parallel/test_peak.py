"""A device's peak is the maker's figure where its kind is known, and a measurement that says so elsewhere."""

from types import SimpleNamespace

import jax
import pytest

from jaxchop.parallel.peak import peak


@pytest.mark.parametrize(
  ("kind", "dtype", "figure"),
  [
    ("TPU v4", "bfloat16", 275),
    ("TPU v5 lite", "bfloat16", 197),
    ("TPU v5", "bfloat16", 459),
    ("TPU v6 lite", "float32", 918),
    ("NVIDIA A100-SXM4-80GB", "bfloat16", 312),
    ("NVIDIA A100-SXM4-80GB", "float32", 156),
    ("NVIDIA H100 PCIe", "bfloat16", 756),
    ("NVIDIA H100 80GB HBM3", "bfloat16", 989),
    ("NVIDIA L4", "bfloat16", 121),
    ("NVIDIA L40S", "bfloat16", 362),
    ("Tesla T4", "float32", 8.1),
  ],
)
def test_a_known_device_has_its_makers_figure(kind: str, dtype: str, figure: float) -> None:
  device = SimpleNamespace(device_kind=kind)
  found = peak([device] * 4, dtype)  # type: ignore[list-item]
  assert found.flops_per_second == pytest.approx(4 * figure * 1e12) and "by its data sheet" in found.words


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_cpu_is_measured_and_its_devices_share_the_cores(dtype: str) -> None:
  one, four = peak(jax.devices()[:1], dtype), peak(jax.devices()[:4], dtype)
  with jax.set_mesh(jax.make_mesh((4,), ("data",))):
    assert peak(jax.devices()[:4], dtype) == four
  assert one == four and one.flops_per_second > 1e8 and one.words.startswith("a measured ")
