"""The unpruned model writes what the pruned one trains on: from given beginnings, once, and only that is predicted."""

import dataclasses
import json
import logging

import pytest
from tiny_models import CONFIG

from jaxchop import own_words as writing
from jaxchop.config import DataConfig, OwnConfig, PruneConfig, Recipe
from jaxchop.data.sources import Document
from jaxchop.errors import JaxchopError, UsageError
from jaxchop.files import read_json
from jaxchop.job import Job
from jaxchop.model.generate import generate
from jaxchop.own_words import own_words
from jaxchop.subject import Subject
from jaxchop.training import MeshConfig, RecoverConfig

TEXTS = [
  Document(f"texts:{n}", f"Layer {n} is one of {n + 3} layers, and what it does is {n} times as much.")
  for n in range(7)
]
ASKED = [Document("asked:0", "Name a colour. Red, of course.", ((15, 30),))]
SETTINGS = OwnConfig(prompt_tokens=6, new_tokens=5, temperature=0.0, batch_size=3)
SEVEN = dataclasses.replace(SETTINGS, documents=7)


@pytest.fixture(scope="module")
def subject(tiny_folder):
  return Subject(str(tiny_folder()))


@pytest.fixture(scope="module")
def model(subject):
  return subject.load()


@pytest.fixture
def write(subject, model, tmp_path):
  def words(documents, config=SETTINGS, *, longest=64, about="this", read=1000, of=lambda: model):
    out, eos = tmp_path / "own.jsonl", subject.eos
    return own_words(of, subject.tokenizer, documents, out, config, eos=eos, longest=longest, about=about, read=read)

  return words


def test_a_text_is_continued_from_the_first_tokens_of_each_stretch(write, subject, model):
  found = iter(write(TEXTS))
  for given in TEXTS:
    ids = subject.tokenizer.encode(given.text, add_special_tokens=False)
    for start in range(0, len(ids), 6 + 5):
      one, asked = next(found), ids[start : start + 6]
      begin, end = one.answers[0]
      assert one.text[:begin] == subject.tokenizer.decode(asked) and end == len(one.text)
      (new,) = generate(model, [asked], max_new_tokens=5, eos=subject.eos)
      assert one.text[begin:] == subject.tokenizer.decode(new) and one.name == f"{given.name}+{start}"
  assert next(found, None) is None


def test_a_conversation_is_answered_from_all_that_stands_before_the_answer(write):
  (found,) = write(ASKED)
  assert found.text.startswith("Name a colour. ") and found.answers == ((15, len(found.text)),)
  assert "Red" not in found.text


def test_beginnings_that_fill_a_record_are_left_out_and_the_rest_is_counted(write):
  assert len(write(TEXTS, OwnConfig(prompt_tokens=6, new_tokens=2, documents=4))) == 4
  with pytest.raises(JaxchopError, match="no document begins within 5 tokens"):
    write(TEXTS, longest=5)


def test_writing_more_than_twice_what_is_read_is_warned_of(write, caplog):
  def warned():
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]

  # Seven whole stretches of 6 tokens and 5 new ones.
  write(TEXTS, SEVEN, read=39)
  assert not warned()
  write(TEXTS, SEVEN, read=38)
  (said,) = warned()
  assert said.startswith("data.own.documents: up to 77 tokens are written in 7 documents, and recover.steps reads 38")
  assert said.endswith("about 4 documents are enough")


def test_no_more_is_read_than_the_documents_asked_for(write):
  def endless():
    yield from TEXTS
    raise AssertionError("read on")

  assert len(write(endless(), SEVEN)) == 7


def test_a_draw_depends_on_the_seed_alone(write, tmp_path):
  drawn = OwnConfig(prompt_tokens=6, new_tokens=5, batch_size=3)
  first = write(TEXTS, drawn, about="a")
  assert write(TEXTS, drawn, about="b") == first
  assert write(TEXTS, OwnConfig(prompt_tokens=6, new_tokens=5, batch_size=3, seed=1), about="c") != first


@pytest.mark.parametrize("lost", [0, 9])
def test_an_interrupted_writing_goes_on_behind_its_last_whole_batch(write, tmp_path, monkeypatch, lost):
  whole = write(TEXTS, SEVEN)
  (tmp_path / "own.jsonl").unlink()
  real, calls = generate, []

  def stopping(*given, **named):
    calls.append(given)
    if len(calls) == 2:
      raise KeyboardInterrupt
    return real(*given, **named)

  monkeypatch.setattr(writing, "generate", stopping)
  with pytest.raises(KeyboardInterrupt):
    write(TEXTS, SEVEN)
  data = (tmp_path / "own.jsonl").read_bytes()
  (tmp_path / "own.jsonl").write_bytes(data[: len(data) - lost])
  assert write(TEXTS, SEVEN) == whole
  assert len(calls) == 2 + (2 if lost == 0 else 3)
  # What stands needs no model.
  assert write(TEXTS, SEVEN, of=None) == whole


def test_a_job_trains_on_them(tiny_folder, tmp_path):
  (tmp_path / "text.txt").write_text(
    "\n\n".join(f"Paragraph {n} is about number {n} and no other. " * 90 for n in range(40))
  )
  recipe = Recipe(
    out=str(tmp_path / "run"),
    model=str(tiny_folder()),
    data=DataConfig(source=f"self:{tmp_path / 'text.txt'}", own=SEVEN),
    prune=PruneConfig(drop="1"),
    recover=RecoverConfig(steps=2, batch_size=2, seq_len=16, mesh=MeshConfig(fsdp=1)),
  )
  job = Job(recipe)
  assert job.recovered().steps == 2
  assert job.corpora[""].targets and job.texts.held_out
  lines = (tmp_path / "run" / "own" / "source.jsonl").read_text().splitlines()
  assert json.loads(lines[1])[0].startswith(str(tmp_path / "text.txt")) and len(lines) > 5
  note = read_json(tmp_path / "run" / "measured" / "data.json")
  tokens = sum(len(job.subject.tokenizer.encode(json.loads(line)[1])) for line in lines[1:])
  assert note["flops"] > 2 * tokens * CONFIG["vocab_size"] * CONFIG["hidden_size"]
  with pytest.raises(UsageError, match=r"self:self:.* names no text or conversations to go on from"):
    _ = Job(Recipe(out=recipe.out, model=recipe.model, data=DataConfig(source="self:self:builtin"))).texts.corpora
