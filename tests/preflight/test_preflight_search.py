"""Which settings a search compiles, and in which order; the compiler is one that is told what to answer."""

import math
from pathlib import Path

import jax
import pytest
from tiny_run import CONFIG, settings

from jaxchop.errors import UsageError
from jaxchop.hub.architectures import Shape
from jaxchop.parallel.topology import Chip
from jaxchop.preflight import search
from jaxchop.preflight.question import Question
from jaxchop.preflight.shapes import Training
from jaxchop.training import MeshConfig

GENEROUS = Chip(hbm=2**40, cycles_per_second=1e9, ici_bytes_per_second=1e9, dcn_bytes_per_second=1e8)


class Compiler:
  """Says that a setting fits where `fits` does, and remembers what it was asked."""

  def __init__(self, fits):
    self.fits, self.asked, self.needed = fits, [], 1000

  def __call__(self, question: Question, cache: Path) -> dict:
    self.asked.append(question)
    config = question.training.config
    seconds = {"all": config.mesh.tensor + (config.remat == "full")}
    fits = self.fits(question)
    return {
      "fits": fits,
      "memory": {"needed": self.needed},
      "parts": {"parameters": 900},
      "devices": 4,
      "schedule": {"seconds": seconds} if fits else None,
    }


@pytest.fixture
def compiler(monkeypatch):
  """Takes the place of the TPU compiler, for slices of the four devices here."""

  def use(fits, chip: Chip = GENEROUS) -> Compiler:
    made = Compiler(fits)
    monkeypatch.setattr(search, "answer", made)
    monkeypatch.setattr(search, "devices_of", lambda topology, slices: jax.devices())
    monkeypatch.setattr(search, "chip_of", lambda device: chip)
    return made

  return use


def question(**changes) -> Question:
  config = settings(batch_size=16, accumulate=2, remat="none", mesh=MeshConfig(), **changes)
  return Question(training=Training(student=Shape(CONFIG, 3), config=config), topology="v5e:2x2")


def test_the_smallest_change_that_fits_is_proposed(compiler, tmp_path):
  asked = compiler(lambda each: each.training.config.remat == "full")
  found = search.nearest(question(), None, tmp_path)
  assert found.words == "recover.remat full"
  tried = [(each.training.config.accumulate, each.training.config.remat) for each in asked.asked]
  # 8 or 16 micro-batches have fewer rows than there are devices.
  assert tried == [(4, "none"), (2, "dots"), (2, "full")]


def test_logits_of_fewer_tokens_at_once_are_tried_before_another_split(compiler, tmp_path):
  compiler(lambda each: each.training.config.loss_chunk < 1024)
  assert search.nearest(question(), None, tmp_path).words == "recover.loss_chunk 256"
  # Where a device has no more tokens than that, it is no help.
  long, short = question(seq_len=2048), question()
  for asked, smaller in ((long, True), (short, False)):
    assert (search.guessed(asked.changed(loss_chunk=256)).least_bytes < search.guessed(asked).least_bytes) is smaller


def test_what_cannot_fit_by_formula_is_not_compiled_and_a_search_ends(compiler, tmp_path):
  asked = compiler(lambda each: False, GENEROUS._replace(hbm=1000))
  assert search.nearest(question(), None, tmp_path) is None and asked.asked == []
  asked = compiler(lambda each: False)
  assert search.nearest(question(), None, tmp_path) is None and len(asked.asked) == search.TRIES


def test_meshes_are_compared_by_what_the_compiler_says(compiler, tmp_path):
  asked = compiler(lambda each: each.training.config.mesh.tensor != 2)
  found = search.fastest(question(), tmp_path)
  assert len(found) == len(asked.asked) == search.TRIES
  seconds = [sum(each.found["schedule"]["seconds"].values()) if each.found["fits"] else math.inf for each in found]
  assert seconds == sorted(seconds)


def test_what_one_mesh_turned_out_to_need_is_not_tried_with_others(compiler, tmp_path):
  asked = compiler(lambda each: each.training.config.remat != "none")
  asked.needed = 2 * GENEROUS.hbm
  found = search.fastest(question(), tmp_path)
  assert [each.training.config.remat for each in asked.asked].count("none") == 1
  assert sum(each.found["fits"] for each in found) == search.TRIES - 1


def test_what_candidates_leave_idle_is_not_told(compiler, tmp_path, caplog):
  compiler(lambda each: True)
  caplog.set_level("INFO", "jaxchop")
  # Eight micro-batches have rows for two of the four devices.
  with pytest.raises(UsageError, match=r"some of the devices would have nothing to do"):
    search.guessed(question().changed(accumulate=8))
  assert not caplog.messages


def test_no_mesh_at_all_is_wrong_usage(compiler, tmp_path):
  compiler(lambda each: True)
  # Three rows go into four devices in no way, and tensor and context have four parts of nothing.
  odd = question().changed(batch_size=3, accumulate=1, seq_len=13)
  with pytest.raises(UsageError, match=r"--search: no mesh of v5e:2x2 fits a micro-batch of 3 rows"):
    search.fastest(odd, tmp_path)


def test_more_devices_by_formula_take_less_time_and_hold_less(compiler):
  compiler(lambda each: True)
  four = search.guessed(question())
  one = search.guessed(question().changed(mesh=MeshConfig(data=4, fsdp=1)))
  assert four.least_bytes < one.least_bytes
