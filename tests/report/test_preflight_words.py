"""What preflight found, in words."""

from typing import Any

from jaxchop.report.preflight import in_words, rows, tables

GIB = 2**30
SETTINGS = {"trainable": "all", "batch_size": 8, "accumulate": 2, "seq_len": 64, "layout": "scan", "remat": "full"}
HELD = {"parameters": 2 * GIB, "frozen": 0, "optimizer": 4 * GIB, "activations": GIB, "temporaries": GIB}
FITS: dict[str, Any] = {
  "model": "org/name",
  "fits": True,
  "topology": "v5e:4x4",
  "slices": 2,
  "device_kind": "TPU v5 lite",
  "devices": 32,
  "idle": 0,
  "chips": 32,
  "mesh": {"data": 2, "fsdp": 16},
  "layers": 24,
  "settings": SETTINGS | {"compute_dtype": "bfloat16"},
  "hbm": HELD | {"peak_bytes": 8 * GIB, "limit_bytes": 15.75 * GIB},
  "flops_per_step": 1.28e15,
  "model_flops_per_step": 1e15,
  "remat_overhead": 0.28,
  "compile_seconds": 61.0,
  "cached": True,
}
TIME = {
  "step_seconds_estimate": 2.5,
  "seconds_by_resource": {"matrix products": 2.0, "memory and other operations": 0.5, "ICI": 0.0, "DCN": 0.0},
  "collectives": {"all-gather": 3e9},
  "links": {"ici": 3e9, "dcn": 0},
  "bound_by": "matrix products",
  "mfu_bound": 0.4,
  "tokens_per_second": 1234.0,
  "tokens": 5e9,
  "hours": 10.0,
  "chip_hours": 320.0,
  "price": 384.0,
  "price_per_chip_hour": 1.2,
}


def test_what_fits_has_its_memory_time_and_price():
  said = dict(rows(FITS | TIME))
  assert said["slice"] == "2 × v5e:4x4: 32 chips of TPU v5 lite; data 2, fsdp 16"
  assert said["fits"] == "yes, its compiler placed all of it: 8.00 GiB of 15.75 GiB a device at the peak"
  assert "  frozen parameters" not in said and said["  optimizer"].startswith("4.29")
  assert said["FLOP a step"].startswith("1.28e+15, 28")
  assert "320.0 chip-hours, 384 at 1.2 a chip-hour" in " ".join(said.values())
  assert said["compiled in"].endswith("an earlier time")


def test_what_does_not_fit_says_by_how_much_and_what_does():
  over = FITS | {"fits": False, "hbm": FITS["hbm"] | {"peak_bytes": 20.75 * GIB}}
  found = over | {"nearest": FITS | TIME | {"change": "recover.remat full"}}
  assert dict(rows(found))["fits"] == "NO: 20.75 GiB of 15.75 GiB a device"
  assert list(in_words(found))[:2] == ["Too much by 5.00 GiB a device.", "This fits: recover.remat full"]
  ((name, fits, held, *_),) = next(tables(found))
  assert (name, fits, held) == ("nearest that fits", "yes", "8.0")
  assert "take a larger slice or fewer layers" in " ".join(in_words(over | {"nearest": None}))


def test_a_mesh_that_cannot_be_is_said_in_its_own_words():
  refused = {
    "model": "org/name",
    "topology": "v5e:4x4",
    "slices": 1,
    "fits": False,
    "refused": "mesh: 8 rows",
    "nearest": None,
  }
  assert list(rows(refused)) == [("model", "org/name"), ("slice", "v5e:4x4"), ("fits", "NO: mesh: 8 rows")]
  assert list(tables(refused)) == []


def test_idle_chips_and_kernels_without_an_estimate_are_told_of():
  said = " ".join(in_words(FITS | TIME | {"idle": 16, "kernels_without_estimate": 3}))
  assert "16 of 32 devices have nothing to do" in said and "Hand-written kernels" in said


def test_layers_removed_stand_side_by_side():
  sweep = [FITS | TIME | {"removed": removed} for removed in (0, 8)]
  assert [row[0] for row in next(tables(FITS | {"sweep": sweep}))] == ["0 layers removed", "8 layers removed"]
