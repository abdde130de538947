"""What a compiled TPU program does, read from its text: cycles by the compiler's estimate, what collectives send.

The text is scheduled. Most instructions carry `estimated_cycles`; collectives and hand-written kernels do not. What
stands in a loop runs as often as the loop turns. An asynchronous collective appears several times, in its start, its
end and what runs meanwhile, by one channel id: it is counted once. One that a SparseCore does is an asynchronous call.
"""

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from jaxchop.parallel.replica_groups import replica_groups

_HEAD = re.compile(r"(?P<entry>ENTRY )?%(?P<name>[^\s(]+) .*\{$")
_LINE = re.compile(r"  (?P<root>ROOT )?%(?P<name>\S+) = (?P<shape>\(.*?\)|\S+) (?P<op>[a-z][a-z0-9-]*)\((?P<rest>.*)$")
_ARRAY = re.compile(r"\b(pred|[a-z]+\d+[a-z0-9]*)\[([\d,]*)\]")
# The largest number of 64 bits says that it cannot be told, as of some copies for TPU7x.
_CYCLES = re.compile(r'"estimated_cycles":"(?!9223372036854775807")(\d+)"')
_CALLED = re.compile(r"\b(?:calls|to_apply|condition|body|true_computation|false_computation)=%([^\s,}]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_CHANNEL = re.compile(r"channel_id=(\d+)")
_MATMUL = ("convolution", "dot")
_KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "ragged-all-to-all")
# A fusion of this name sums up and keeps a part: the compiler's way to say reduce-scatter.
_SCATTER = "all-reduce-scatter"
# What a hand-written (Pallas) kernel is called.
_KERNEL = 'custom_call_target="tpu_custom_call"'


class Instruction(NamedTuple):
  """One line of a computation."""

  name: str
  shape: str
  op: str
  # Operands and attributes.
  rest: str
  root: bool

  @property
  def operands(self) -> list[str]:
    return re.findall(r"%([^\s,()]+)", self.rest.partition("), ")[0])


class Collective(NamedTuple):
  """All runs of one collective in a step, as one device sees them."""

  kind: str
  # Devices that exchange among each other, one of several groups; their numbers in the program.
  group: tuple[int, ...]
  # Bytes that the device sends in all runs together.
  bytes: int
  # Whether other work goes on meanwhile.
  overlapped: bool


class Cost(NamedTuple):
  """What one step costs one device."""

  # Cycles of what holds a matrix product, and of all else.
  matmul_cycles: int
  other_cycles: int
  collectives: tuple[Collective, ...]
  # Bytes sent to other slices by instructions of their own, and how many hand-written kernels run without an estimate.
  sent_between_slices: int
  kernels: int


def read_cost(text: str, devices: int) -> Cost:
  """Returns the cost of a compiled program of so many devices; raises ValueError where its text is of another form."""
  computations = _computations(text)
  runs = _runs(computations)
  fused = {callee for body in computations.values() for one in body for callee in _called(one) if one.op == "fusion"}
  with_matmul, beside = _holding_matmul(computations), _called_beside(computations)
  matmul, other, kernels, between = 0, 0, 0, 0
  found: dict[str, Collective] = {}
  for name, body in computations.items():
    if not (times := runs[name]):
      continue
    for one in body:
      if name not in fused and (told := _CYCLES.search(one.rest)):
        product = one.op in _MATMUL or any(callee in with_matmul for callee in _called(one))
        matmul += times * int(told[1]) * product
        other += times * int(told[1]) * (not product)
      kernels += times * (_KERNEL in one.rest)
      if one.op == "send" and "megascale" in one.rest:
        between += times * _bytes(one.shape.partition(", u32")[0])
      elif (kind := one.op.removesuffix("-start")) in _KINDS:
        # In a fusion of its own it starts, ends or goes on beside something else.
        spread = one.op.endswith("-start") or (name in fused and not name.startswith(_SCATTER))
        here = _collective(one, kind, name, times, devices)._replace(overlapped=spread or name in beside)
        # One that stands in one place shares its channel with others of the program.
        key = _channel(one) if spread else one.name
        found[key] = max(here, found.get(key, here), key=lambda each: (each.bytes, each.overlapped))
  return Cost(matmul, other, tuple(found.values()), between, kernels)


def _computations(text: str) -> dict[str, list[Instruction]]:
  """Returns the computations by name, the one that runs first under the name ""."""
  found: dict[str, list[Instruction]] = {}
  body: list[Instruction] = []
  for line in text.splitlines():
    if line.startswith("  "):
      if said := _LINE.match(line):
        body.append(Instruction(said["name"], said["shape"], said["op"], said["rest"], said["root"] is not None))
    elif said := _HEAD.match(line):
      body = found[said["name"]] = []
      if said["entry"]:
        found[""] = body
  if "" not in found:
    raise ValueError("the compiled program's text has no entry computation; this XLA writes it in another form")
  return found


def _called(one: Instruction) -> list[str]:
  branches = _BRANCHES.search(one.rest)
  return _CALLED.findall(one.rest) + (re.findall(r"%([^\s,]+)", branches[1]) if branches else [])


def _runs(computations: dict[str, list[Instruction]]) -> dict[str, int]:
  """Returns how often each computation runs in a step; of a branch, as if it were always taken."""
  runs: dict[str, int] = defaultdict(int)

  def visit(name: str, times: int) -> None:
    runs[name] += times
    for one in computations[name]:
      turns = _trips(one, computations[name], computations) if one.op == "while" else 1
      for callee in _called(one):
        if callee in computations:
          visit(callee, times * turns)

  visit("", 1)
  return runs


def _trips(loop: Instruction, around: Sequence[Instruction], computations: dict[str, list[Instruction]]) -> int:
  """Returns how often a loop turns that counts up to a constant; 1 where it does not."""
  condition, body = (re.search(rf"{what}=%([^\s,]+)", loop.rest) for what in ("condition", "body"))
  assert condition is not None and body is not None
  test = {one.name: one for one in computations[condition[1]]}
  root = next(one for one in test.values() if one.root)
  sides = [test[name] for name in root.operands if name in test]
  counter = next((one for one in sides if one.op == "get-tuple-element"), None)
  limit = next((value for one in sides if (value := _constant(one)) is not None), None)
  if "direction=LT" not in root.rest or counter is None or limit is None:
    return 1
  place = int(re.findall(r"index=(\d+)", counter.rest)[0])
  before = {one.name: one for one in around}
  start = _constant(_origin(before, loop.operands[0], place)) or 0
  inside = {one.name: one for one in computations[body[1]]}
  end = next(one for one in inside.values() if one.root)
  step = _step(inside, end.operands[place]) if len(end.operands) > place else 1
  return max(math.ceil((limit - start) / step), 0)


def _origin(before: dict[str, Instruction], name: str, place: int) -> Instruction | None:
  """Returns what stands at a place of the tuple of this name."""
  given = before.get(name)
  if given is None or given.op != "tuple":
    return None
  found = before.get(given.operands[place])
  while found is not None and found.op in ("copy", "bitcast"):
    found = before.get(found.operands[0])
  return found


def _step(inside: dict[str, Instruction], name: str) -> int:
  """Returns by how much a loop's counter grows in a turn."""
  one = inside.get(name)
  while one is not None and one.op in ("copy", "bitcast"):
    one = inside.get(one.operands[0])
  if one is None or one.op != "add":
    return 1
  values = [value for operand in one.operands if (value := _constant(inside.get(operand))) is not None]
  return values[0] if values and values[0] > 0 else 1


def _constant(one: Instruction | None) -> int | None:
  if one is None or one.op != "constant":
    return None
  said = re.match(r"(-?\d+)\)", one.rest)
  return int(said[1]) if said else None


def _called_beside(computations: dict[str, list[Instruction]]) -> set[str]:
  """Returns the computations of asynchronous calls beside which the core has something to do before it needs them."""
  found: set[str] = set()
  for body in computations.values():
    work, begun = 0, {}
    for one in body:
      if one.op == "call-start":
        begun[one.name] = work, _called(one)
      elif one.op == "call-done" and one.operands[0] in begun:
        before, callees = begun[one.operands[0]]
        found.update(callees if work > before else ())
      else:
        work += one.op == "while" or _CYCLES.search(one.rest) is not None
  return found


def _holding_matmul(computations: dict[str, list[Instruction]]) -> set[str]:
  """Returns the computations that hold a matrix product, themselves or in what they call."""
  found = {name for name, body in computations.items() if any(one.op in _MATMUL for one in body)}
  while more := {
    name
    for name, body in computations.items()
    if name not in found and any(one.op == "fusion" and found.intersection(_called(one)) for one in body)
  }:
    found |= more
  return found


def _collective(one: Instruction, kind: str, computation: str, times: int, devices: int) -> Collective:
  group = replica_groups(one.rest, devices)[0]
  size, count = _bytes(_result(one)), len(group)
  share = (count - 1) / count
  match kind:
    case "all-reduce" if computation.startswith(_SCATTER):
      kind, sent = "reduce-scatter", share * size
    case "all-reduce":
      sent = 2 * share * size
    case "reduce-scatter":
      sent = (count - 1) * size
    case "collective-permute":
      sent = size
    case _:
      sent = share * size
  return Collective(kind, tuple(group), round(times * sent), overlapped=False)


def _channel(one: Instruction) -> str:
  """Returns what tells a collective from others: its channel id, or its own name where it has none."""
  said = _CHANNEL.search(one.rest)
  return said[1] if said else one.name


def _result(one: Instruction) -> str:
  """Returns the shape of what comes out: the start of an asynchronous one bears its operands' shapes before it."""
  if one.op in ("all-gather-start", "collective-permute-start") and one.shape.startswith("("):
    return list(_arrays(one.shape))[1]
  return one.shape


def _arrays(shape: str) -> Iterator[str]:
  yield from (said[0] for said in _ARRAY.finditer(shape))


def _bytes(shape: str) -> int:
  """Returns the bytes of all arrays of a shape."""
  return sum(
    _width(kind) * math.prod(map(int, filter(None, sizes.split(",")))) for kind, sizes in _ARRAY.findall(shape)
  )


def _width(kind: str) -> int:
  """Returns the bytes of an element; a few of less than a byte count as one."""
  bits = re.search(r"\d+", kind)
  return 1 if bits is None else max(int(bits[0]) // 8, 1)
