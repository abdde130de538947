"""A plan that cost a search or a measurement is made once: a restart comes to the same one without the model."""

import contextlib
import dataclasses
import json
import sys

import pytest

from jaxchop import retrain, stages
from jaxchop.config import DataConfig, MergingConfig, PruneConfig, Recipe
from jaxchop.data.pack import pack
from jaxchop.errors import UsageError
from jaxchop.job import Job
from jaxchop.recover.checkpoint import load_weights
from jaxchop.subject import Subject
from jaxchop.training import DistillConfig, MeshConfig, OptimizerConfig, RecoverConfig


@pytest.fixture
def recipe(tiny_folder, tmp_path):
  def made(prune, **settings):
    return Recipe(out=str(tmp_path / "run"), model=str(tiny_folder()), prune=prune, **settings)

  return made


def restarted(recipe):
  """Returns the plan of a new process, which must not open the model."""
  job = Job(recipe)
  job.whole = None
  return job.plan


@pytest.mark.parametrize("merge", ["laco", "mka"])
def test_a_searched_merge_stands(recipe, merge):
  asked = recipe(PruneConfig(merge=merge, count=1), merging=MergingConfig(layers_per_merge=2))
  plan = Job(asked).plan
  assert plan.merges
  assert restarted(asked) == plan


def test_other_settings_search_anew(recipe):
  plan = Job(recipe(PruneConfig(merge="mka", count=1))).plan
  again = Job(recipe(PruneConfig(merge="mka", count=2))).plan
  assert len(again.keep) == len(plan.keep) - 1


def test_a_latency_is_timed_once(recipe, monkeypatch):
  asked = recipe(PruneConfig(pattern="tail", latency=0.8))
  monkeypatch.setattr(stages, "layer_share", lambda model: 0.15)
  plan = Job(asked).plan
  assert len(plan.drop) == 2
  monkeypatch.setattr(stages, "layer_share", lambda model: 0.5)
  assert restarted(asked) == plan


@pytest.mark.parametrize(
  ("recover", "said"),
  [
    (RecoverConfig(accumulate=3), r"accumulate is 3, which does not divide recover\.batch_size 4"),
    (RecoverConfig(optimizer=OptimizerConfig(decay_share=2.0)), r"decay_share is 2\.0"),
    (
      RecoverConfig(mesh=MeshConfig(fsdp=1, context=3)),
      r"mesh\.context is 3, which does not divide recover\.seq_len, 256",
    ),
    (
      RecoverConfig(mesh=MeshConfig(fsdp=1, tensor=4)),
      r"mesh\.tensor is 4, which does not divide the model's key/value",
    ),
  ],
)
def test_a_recovery_that_cannot_begin_is_refused_before_anything_else(recipe, tmp_path, recover, said):
  with pytest.raises(UsageError, match=said):
    Job(recipe(PruneConfig(drop="1"), recover=recover))
  assert not (tmp_path / "run").exists()


def test_a_tracker_that_is_not_installed_is_refused_before_anything_else(recipe, tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "wandb", None)
  with pytest.raises(UsageError, match=r"wandb needs the package wandb .*pip install 'jaxchop\[track\]'"):
    Job(recipe(PruneConfig(drop="1"), recover=RecoverConfig(track=("wandb",))))
  assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("steps", "warned"), [(2, False), (20, True)])
def test_a_text_read_too_often_is_said_beforehand(recipe, tmp_path, caplog, monkeypatch, steps, warned):
  documents = [json.dumps({"text": f"Text {number}: " + f"word{number} " * 40}) for number in range(40)]
  (tmp_path / "text.jsonl").write_text("\n".join(documents))
  settings = RecoverConfig(steps=steps, batch_size=64, seq_len=64)
  monkeypatch.setattr("jaxchop.retrain.recover", lambda *given, **named: None)
  Job(recipe(PruneConfig(drop="1"), data=DataConfig(source=str(tmp_path / "text.jsonl")), recover=settings)).recovered()
  assert any("learned by heart" in line for line in caplog.messages) == warned


def test_a_teacher_speaks_by_the_same_tokenizer(recipe, tiny_folder):
  other = tiny_folder()
  tokenizer = json.loads((other / "tokenizer.json").read_text())
  tokenizer["normalizer"] = {"type": "Lowercase"}
  (other / "tokenizer.json").write_text(json.dumps(tokenizer))
  for teacher, refused in ((tiny_folder(seed=1), False), (other, True)):
    settings = RecoverConfig(steps=2, distill=DistillConfig(weight=1.0, teacher=str(teacher)))
    expected = pytest.raises(UsageError, match=r"recover\.distill\.teacher: .* has another tokenizer than")
    with expected if refused else contextlib.nullcontext():
      retrain.check(Job(recipe(PruneConfig(drop="1"), recover=settings)))


def test_a_recovery_between_rounds_has_no_run_to_fork_from(recipe):
  prune = PruneConfig(criterion="block_influence", count=2, rounds=2, recover_between=2)
  with pytest.raises(UsageError, match=r"recover\.fork: a recovery between rounds has no run to fork from"):
    Job(recipe(prune, recover=RecoverConfig(fork="runs/x")))


@pytest.fixture
def cache(tmp_path, tiny_folder):
  """Builds a cache of the tiny model's tokens."""

  def build(name, text, **settings):
    subject = Subject(str(tiny_folder()))
    out = tmp_path / name
    pack([text], subject.tokenizer, seq_len=16, out=out, eos=subject.eos[0], **settings)
    return str(out)

  return build


TWO_STEPS = RecoverConfig(steps=2, batch_size=4, seq_len=16, mesh=MeshConfig(fsdp=1))


def test_a_cache_is_trained_on_as_it_is(recipe, tmp_path, cache):
  source = cache("cache", "words of a cache " * 90, segments=True)
  assert Job(recipe(PruneConfig(drop="1"), data=DataConfig(source=source), recover=TWO_STEPS)).recovered().steps == 2
  assert not (tmp_path / "run" / "data").exists()
  with pytest.raises(UsageError, match=r"holds records of 16 tokens, not of 32: set recover\.seq_len to 16"):
    other = dataclasses.replace(TWO_STEPS, seq_len=32)
    Job(recipe(PruneConfig(drop="1"), data=DataConfig(source=source), recover=other))


def test_caches_and_text_are_trained_on_side_by_side(recipe, tmp_path, cache):
  (tmp_path / "text.txt").write_text("\n\n".join(f"Paragraph {n} is about number {n}." for n in range(300)))
  corpora = {"one": cache("cache", "words of a cache " * 90), "two": str(tmp_path / "text.txt")}
  data = DataConfig(corpora=corpora, weights={0: {"one": 3, "two": 1}, 1: {"two": 1}})
  job = Job(recipe(PruneConfig(drop="1"), data=data, recover=TWO_STEPS))
  job.recovered()
  meta = load_weights(job.folder.checkpoints)[1]
  assert meta["data"] == [
    {name: packed.digest for name, packed in job.corpora.items()},
    {"0": {"one": 3, "two": 1}, "1": {"two": 1}},
  ]


def test_conversations_are_trained_on_beside_text(recipe, tmp_path):
  talks = [{"instruction": f"Say {n}.", "input": "", "output": f"It is {n}, and that is all."} for n in range(40)]
  (tmp_path / "talks.jsonl").write_text("".join(json.dumps(talk) + "\n" for talk in talks))
  (tmp_path / "text.txt").write_text("\n\n".join(f"Paragraph {n} is about number {n}." for n in range(300)))
  corpora = {"talks": f"chat:{tmp_path / 'talks.jsonl'}", "text": str(tmp_path / "text.txt")}
  settings = dataclasses.replace(TWO_STEPS, seq_len=48)
  job = Job(recipe(PruneConfig(drop="1"), data=DataConfig(corpora=corpora), recover=settings))
  assert job.recovered().steps == 2
  assert job.corpora["talks"].targets and not job.corpora["text"].targets
  assert next(doc.name.rpartition("/")[2][:8] for doc in job.texts.training) == "text.txt"
  # A text that is measured on is no conversation, nor set aside from any.
  for data, words in (
    (DataConfig(corpora=corpora), r"data\.held_out: no text is set aside from data\.corpora"),
    (DataConfig(held_out=corpora["talks"]), r"data\.held_out: chat:.* is to train on; name text"),
  ):
    with pytest.raises(UsageError, match=words):
      Job(recipe(PruneConfig(drop="1"), data=data, recover=settings)).texts.require("held_out")


def test_what_cannot_be_measured_along_the_way_is_refused_at_once(recipe):
  settings = dataclasses.replace(TWO_STEPS, evaluate_suite=("capability",))
  with pytest.raises(UsageError, match=r"recover\.evaluate_suite: nothing says when; set recover\.evaluate_every"):
    Job(recipe(PruneConfig(drop="1"), recover=settings))
