"""Settings near a recipe's that fit a slice, the fastest of several meshes and remat policies, and fewer layers.

Compiling takes minutes, so candidates are tried in an order: what a formula says cannot fit is not compiled.
"""

import itertools
import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from jaxchop.errors import UsageError
from jaxchop.parallel.mesh import AXES
from jaxchop.parallel.sharding import bytes_per_device
from jaxchop.parallel.topology import chip_of, devices_of, larger
from jaxchop.preflight.question import Question, answer
from jaxchop.preflight.shapes import plan
from jaxchop.training import MeshConfig

log = logging.getLogger("jaxchop")
# From what keeps the most to what computes the most again.
_REMATS = ("none", "dots", "full")
# Tokens whose logits are held at once, where the usual number is too many: of fewer, products are slow.
_SMALL_CHUNK = 256
# At most so many candidates of one search are compiled; near a setting, so many splits of the devices are looked at
# before larger slices, and so many candidates in all.
TRIES, _SPLITS, _LOOKS = 6, 12, 100


class Tried(NamedTuple):
  """A setting, in words, and what compiling it told."""

  words: str
  question: Question
  found: dict[str, Any]


class Guess(NamedTuple):
  """What a formula says of a setting: bytes that a device holds at the least, and seconds to order candidates by."""

  least_bytes: int
  seconds: float


def nearest(question: Question, found: dict[str, Any] | None, cache: Path) -> Tried | None:
  """Returns the first setting near a question's that fits, or None; `found` is the answer to the question itself.

  Tried in this order: more micro-batches, more remat, both, logits of fewer tokens at once, another split of the
  devices, a larger slice.
  """
  short = 0.0 if found is None else _short(found, guessed(question))
  tried = 0
  for words, candidate in itertools.islice(_near(question), _LOOKS):
    try:
      guess = guessed(candidate)
    except UsageError:
      continue
    devices = devices_of(candidate.topology, candidate.slices)
    if guess.least_bytes + short / len(devices) > chip_of(devices[0]).hbm:
      continue
    log.info("Trying %s", words)
    told = answer(candidate, cache)
    if told["fits"]:
      return Tried(words, candidate, told)
    short = _short(told, guess)
    if (tried := tried + 1) == TRIES:
      break
  return None


def _short(found: dict[str, Any], guess: Guess) -> float:
  """Returns what the compiler needs beyond what a formula knows of a setting, on all devices: mostly cut as that."""
  return max(found["memory"]["needed"] - guess.least_bytes, 0) * found["devices"]


def fastest(question: Question, cache: Path, tries: int = TRIES) -> list[Tried]:
  """Returns the meshes and remat policies that a formula finds fastest, compiled, the fastest first, then what is none.

  Raises UsageError where no mesh of these devices fits batch and model.
  """
  devices = devices_of(question.topology, question.slices)
  limit = chip_of(devices[0]).hbm
  looked = sorted(_may_fit(question, limit), key=lambda one: one[0].seconds)
  if not looked:
    raise UsageError(
      f"--search: no mesh of {question.topology} fits a micro-batch of {question.training.rows} rows and this model; "
      "change recover.batch_size or recover.accumulate, or take a larger slice"
    )
  log.info("%d settings may fit; compiling %d at most", len(looked), min(tries, len(looked)))
  told: list[Tried] = []
  # What one setting turned out to need beyond the formula, another one with as much remat needs too.
  short: dict[str, float] = {}
  for guess, words, each in looked:
    remat = each.training.config.remat
    if guess.least_bytes + short.get(remat, 0.0) / len(devices) > limit:
      continue
    log.info("Trying %s", words)
    told.append(Tried(words, each, answer(each, cache)))
    if not told[-1].found["fits"]:
      short[remat] = _short(told[-1].found, guess)
    if len(told) == tries:
      break
  return sorted(told, key=lambda one: sum(one.found["schedule"]["seconds"].values()) if one.found["fits"] else math.inf)


def _may_fit(question: Question, limit: int) -> Iterator[tuple[Guess, str, Question]]:
  """Yields every mesh with every remat policy that a formula does not exclude."""
  for words, candidate in _meshes(question):
    for remat in _REMATS:
      each = candidate.changed(remat=remat)
      try:
        guess = guessed(each)
      except UsageError:
        break
      if guess.least_bytes <= limit:
        yield guess, f"{words}, remat {remat}", each


def guessed(question: Question) -> Guess:
  """Returns what formulas say of a setting; raises UsageError where its mesh fits neither slice nor batch nor model."""
  devices = devices_of(question.topology, question.slices)
  planned, chip = plan(question.training, devices), chip_of(devices[0])
  if planned.idle(devices):
    raise UsageError("mesh: some of the devices would have nothing to do")
  config, student = question.training.config, question.training.student
  shape = dict.fromkeys(AXES, 1) if planned.mesh is None else dict(planned.mesh.shape)
  held = bytes_per_device(planned.state) + _kept(question, len(devices) // shape["tensor"], shape["tensor"])
  parameters = bytes_per_device(planned.state.trained) * len(devices) / shape["data"]
  # Weights are gathered twice and gradients scattered once a micro-batch, in two bytes; a copy sums up whole gradients.
  cut = shape["fsdp"] * shape["context"]
  gathered = 3 * config.accumulate * parameters / 2 / shape["tensor"] * (cut - 1) / cut
  # With tensor parallelism each half of a layer sums up the stream, forward and backward.
  tokens = config.batch_size * config.seq_len / (shape["data"] * shape["fsdp"] * shape["context"])
  summed = 4 * student.layers * 2 * tokens * student.architecture.width * 2 * (shape["tensor"] - 1) / shape["tensor"]
  repeated = {"none": 1.0, "dots": 1.05, "offload": 1.1, "full": 4 / 3}[config.remat]
  rate = 1.4e14 if chip.cycles_per_second < 1.6e9 else 4e14
  seconds = planned.model_flops * repeated / len(devices) / rate + (gathered + summed) / chip.ici_bytes_per_second
  return Guess(held, seconds)


def _kept(question: Question, parts: int, tensor: int) -> int:
  """Returns the bytes that a device keeps at least of a micro-batch whose tokens are cut into so many parts.

  That is what the backward pass needs, and the logits of a chunk of tokens over a part of the vocabulary.
  """
  config, (model, layers) = question.training.config, question.training.student
  tokens = question.training.rows * config.seq_len // parts
  logits = 4 * min(config.loss_chunk, tokens) * model.vocab_size // tensor
  width = model.width
  if config.remat in ("none", "dots"):
    width += 2 * model.width + 2 * (model.heads + model.kv_heads) * model.head_dim + 2 * model.mlp_width
  element = 2 if config.compute_dtype == "bfloat16" else 4
  return element * layers * width * tokens + logits


def _near(question: Question) -> Iterator[tuple[str, Question]]:
  """Yields changes of a question, the smaller ones first, in words and as questions."""
  config = question.training.config
  smaller = [n for n in range(config.accumulate + 1, config.batch_size + 1) if config.batch_size % n == 0]
  larger_rows = [n for n in range(config.accumulate - 1, 0, -1) if config.batch_size % n == 0]
  after = _REMATS.index(config.remat) + 1 if config.remat in _REMATS else len(_REMATS)
  remats = _REMATS[after:]
  for count in smaller[:4]:
    yield f"recover.accumulate {count}", question.changed(accumulate=count)
  for remat in remats:
    yield f"recover.remat {remat}", question.changed(remat=remat)
  for remat, count in itertools.product(remats[-1:], smaller[:4]):
    yield f"recover.remat {remat}, recover.accumulate {count}", question.changed(remat=remat, accumulate=count)
  if config.loss_chunk > _SMALL_CHUNK:
    for remat, count in itertools.product(
      dict.fromkeys((config.remat, *remats[-1:])), (config.accumulate, *smaller[:4])
    ):
      told = [f"recover.remat {remat}"] * (remat != config.remat)
      told += [f"recover.accumulate {count}"] * (count != config.accumulate)
      changed = question.changed(loss_chunk=_SMALL_CHUNK, remat=remat, accumulate=count)
      yield ", ".join([f"recover.loss_chunk {_SMALL_CHUNK}", *told]), changed
  # A mesh that cannot divide the rows of a micro-batch wants more of them.
  for count in larger_rows[:3]:
    yield f"recover.accumulate {count}", question.changed(accumulate=count)
  last = remats[-1] if remats else config.remat
  for words, other in itertools.islice(_meshes(question), _SPLITS):
    yield words, other
    if last != config.remat:
      yield f"{words}, recover.remat {last}", other.changed(remat=last)
  for topology in larger(question.topology):
    grown = Question(training=question.training, topology=topology, slices=question.slices)
    free = grown.changed(mesh=MeshConfig())
    for each in dict.fromkeys((grown, free)):
      for remat in dict.fromkeys((config.remat, last)):
        for count in dict.fromkeys((config.accumulate, *larger_rows[:3])):
          changes = {"recover.remat": (remat, config.remat), "recover.accumulate": (count, config.accumulate)}
          told = [f"{name} {new}" for name, (new, old) in changes.items() if new != old]
          told += ["mesh.fsdp -1 and the others 1"] if each.training.config.mesh != config.mesh else []
          yield ", ".join([f"--topology {topology}", *told]), each.changed(remat=remat, accumulate=count)


def _meshes(question: Question) -> Iterator[tuple[str, Question]]:
  """Yields the splits of all devices that divide batch and model: fewer axes first, then less of tensor and context."""
  count = len(devices_of(question.topology, question.slices))
  splits = []
  for data, context, tensor in itertools.product(_divisors(count), repeat=3):
    if count % (data * context * tensor) == 0:
      splits.append((data, count // (data * context * tensor), context, tensor))
  for sizes in sorted(splits, key=lambda split: (sum(size > 1 for size in split), split[3], split[2], split[0])):
    mesh = MeshConfig(**dict(zip(AXES, sizes, strict=True)), wait=question.training.config.mesh.wait)
    words = ", ".join(f"mesh.{axis} {size}" for axis, size in zip(AXES, sizes, strict=True) if size > 1)
    yield words or "one device", question.changed(mesh=mesh)


def _divisors(number: int) -> list[int]:
  return [each for each in range(1, number + 1) if number % each == 0]
