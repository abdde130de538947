"""From a compiled program's cycles and bytes to seconds: by the compiler's estimates and the published links.

What is summed: the cycles of all that carries an estimate, and the time on the wire of collectives that nothing hides.
What goes on meanwhile costs only what it takes longer. Hand-written kernels carry no estimate: of the step's,
question.py adds the time at the peak of matrix products, of other programs' they are left out.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from jaxchop.parallel.topology import Chip


def schedule(cost: Mapping[str, Any], chip: Chip, devices: Sequence[jax.Device]) -> dict[str, Any]:
  """Returns the seconds of a step by what spends them, and a device's bytes by kind of collective and by link.

  `cost` is that of parallel/hlo.py as JSON; `devices` stand in the order of the program's numbers.
  """
  matmul, other = (cost[name] / chip.cycles_per_second for name in ("matmul_cycles", "other_cycles"))
  kinds: Counter[str] = Counter()
  links = {"ici": 0, "dcn": 0}
  hidden = {"ici": 0.0, "dcn": 0.0}
  exposed = {"ici": 0.0, "dcn": 0.0}
  for one in cost["collectives"]:
    group = [devices[number] for number in one["group"]]
    link = "dcn" if len({getattr(device, "slice_index", 0) for device in group}) > 1 else "ici"
    speed = chip.dcn_bytes_per_second if link == "dcn" else chip.ici_bytes_per_second * _axes(group)
    kinds[one["kind"]] += one["bytes"]
    links[link] += one["bytes"]
    (hidden if one["overlapped"] else exposed)[link] += one["bytes"] / speed
  if between := cost["sent_between_slices"]:
    kinds["between slices"] += between
    links["dcn"] += between
    # The compiler sends while it computes where it can.
    hidden["dcn"] += between / chip.dcn_bytes_per_second
  core = matmul + other
  seconds = {
    "matrix products": matmul,
    "memory and other operations": other,
    "ICI": exposed["ici"] + max(hidden["ici"] - core, 0.0),
    "DCN": exposed["dcn"] + max(hidden["dcn"] - core - exposed["ici"], 0.0),
  }
  return {
    "seconds": seconds,
    "hidden_seconds": hidden,
    "collectives": dict(kinds),
    "links": links,
    "kernels_without_estimate": cost["kernels"],
  }


def _axes(group: Sequence[jax.Device]) -> int:
  """Returns over how many axes of the torus a group lies, all of whose links it can use; at least one."""
  places = [device.coords for device in group]
  return max(sum(len(set(along)) > 1 for along in zip(*places, strict=True)), 1)
