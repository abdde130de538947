"""Which device stands where in a mesh, told from stand-ins that only say where they are."""

import dataclasses

import numpy as np
import pytest

from jaxchop.errors import UsageError
from jaxchop.model.scatter import two_stages
from jaxchop.parallel.mesh import AXES, arranged


@dataclasses.dataclass(frozen=True)
class Device:
  """As much of a device as its place in a mesh depends on."""

  id: int
  platform: str = "tpu"
  device_kind: str = "TPU v5 lite"
  slice_index: int = 0
  process_index: int = 0
  coords: tuple[int, ...] = (0, 0, 0)
  core_on_chip: int = 0


def slices(count: int, side: int = 4) -> list[Device]:
  """TPU slices of side x side chips."""
  places = [(x, y, 0) for y in range(side) for x in range(side)]
  return [Device(i * len(places) + n, slice_index=i, coords=at) for i in range(count) for n, at in enumerate(places)]


def mesh(devices: list[Device], *sizes: int) -> np.ndarray:
  return arranged(dict(zip(AXES, sizes, strict=True)), devices)


def spread(devices: np.ndarray, what: str) -> set:
  return {getattr(device, what) for device in devices.ravel()}


@pytest.mark.parametrize("sizes", [(2, 16, 1, 1), (4, 8, 1, 1), (4, 2, 2, 2)])
def test_only_copies_of_the_model_lie_on_several_slices(sizes):
  found = mesh(slices(2), *sizes)
  assert found.shape == sizes and len(spread(found, "id")) == 32
  half = sizes[0] // 2
  assert spread(found[:half], "slice_index") == {0} and spread(found[half:], "slice_index") == {1}


@pytest.mark.parametrize("sizes", [(1, 32, 1, 1), (3, 32, 1, 1)])
def test_copies_that_slices_cannot_share_are_refused(sizes):
  with pytest.raises(UsageError, match=rf"mesh\.data is {sizes[0]}; the devices are 2 slices .* multiple of 2"):
    mesh(slices(2), *sizes)


@pytest.mark.parametrize("sizes", [(1, 16, 1, 1), (2, 8, 1, 1), (1, 8, 1, 2)])
def test_weights_lie_over_two_axes_of_the_torus(sizes):
  for group in np.moveaxis(mesh(slices(1), *sizes), 1, 0).reshape(sizes[1], -1).T:
    assert all(len({device.coords[axis] for device in group}) > 1 for axis in (0, 1))


def test_a_part_of_a_torus_is_taken_as_it_comes():
  devices = slices(1)[:6]
  assert [d.id for d in mesh(devices, 1, 6, 1, 1).ravel()] == list(range(6))


def test_copies_of_the_model_lie_on_hosts_of_gpus():
  devices = [Device(n, "gpu", "NVIDIA H100", n // 8, n // 8) for n in range(16)]
  found = mesh(devices, 2, 8, 1, 1)
  assert spread(found[0], "process_index") == {0} and spread(found[1], "process_index") == {1}
  assert mesh(devices, 1, 16, 1, 1).shape == (1, 16, 1, 1)


@pytest.mark.parametrize("count", [1, 2])
def test_one_axis_over_a_whole_slice_follows_its_lines(count):
  columns, lines = two_stages(16)
  for part in mesh(slices(count), count, 16, 1, 1).reshape(count, 16):
    for groups, along in ((columns, 1), (lines, 0)):
      for group in groups:
        # One line of four chips each: all have one of the two places in common.
        assert len({part[number].coords[along] for number in group}) == 1
        assert len({part[number].coords[1 - along] for number in group}) == 4
