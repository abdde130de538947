"""From cycles and bytes to seconds, on figures that can be checked by hand."""

import dataclasses

import pytest

from jaxchop.parallel.topology import Chip, larger
from jaxchop.preflight.schedule import schedule

CHIP = Chip(hbm=1, cycles_per_second=100.0, ici_bytes_per_second=10.0, dcn_bytes_per_second=1.0)


@dataclasses.dataclass(frozen=True)
class Device:
  coords: tuple[int, ...]
  slice_index: int = 0


# Two slices of two chips in a row.
DEVICES = [Device((x, 0, 0), number) for number in range(2) for x in range(2)]


def cost(*collectives, matmul: int = 100, other: int = 50, sent: int = 0) -> dict:
  names = ("kind", "group", "bytes", "overlapped")
  found = [dict(zip(names, one, strict=True)) for one in collectives]
  return {
    "matmul_cycles": matmul,
    "other_cycles": other,
    "collectives": found,
    "sent_between_slices": sent,
    "kernels": 0,
  }


def test_what_nothing_hides_takes_its_time_on_the_wire():
  found = schedule(cost(("all-reduce", (0, 1), 20, False)), CHIP, DEVICES)
  assert found["seconds"] == {"matrix products": 1.0, "memory and other operations": 0.5, "ICI": 2.0, "DCN": 0.0}
  assert found["collectives"] == {"all-reduce": 20} and found["links"] == {"ici": 20, "dcn": 0}


def test_what_is_hidden_costs_only_what_it_takes_longer():
  assert schedule(cost(("all-gather", (0, 1), 10, True)), CHIP, DEVICES)["seconds"]["ICI"] == 0
  assert schedule(cost(("all-gather", (0, 1), 20, True)), CHIP, DEVICES)["seconds"]["ICI"] == pytest.approx(0.5)


def test_a_group_across_slices_and_what_is_sent_between_them_go_over_the_slow_network():
  found = schedule(cost(("all-reduce", (0, 2), 3, False), sent=4), CHIP, DEVICES)
  assert found["links"] == {"ici": 0, "dcn": 7}
  assert found["seconds"]["DCN"] == pytest.approx(3 + 4 - 1.5)


def test_a_group_along_two_axes_has_the_links_of_both():
  square = [Device((x, y, 0)) for x in range(2) for y in range(2)]
  found = schedule(cost(("all-reduce", (0, 1, 2, 3), 20, False)), CHIP, square)
  assert found["seconds"]["ICI"] == pytest.approx(1.0)


def test_larger_slices_come_smallest_first():
  assert larger("v5e:4x4")[:2] == ["v5e:4x8", "v5e:8x8"]
  assert larger("v5p:4x4x8") == ["v5p:4x8x8", "v5p:8x8x8"]
  assert larger("v9:4x4") == []
