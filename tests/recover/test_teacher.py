"""Learning from the unpruned model: what is minimised, what is held once, and nothing to learn from oneself."""

import dataclasses
import signal
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_loop import curve
from tiny_run import CONFIG, Records, records, settings, tiny_model

from jaxchop.data.batch import Batch
from jaxchop.errors import Interrupted, UsageError
from jaxchop.model.llama import hidden_and
from jaxchop.model.tree import flatten
from jaxchop.prune.surgery import keep_layers
from jaxchop.recover.curve import read_curve
from jaxchop.recover.frozen import recovered_parts
from jaxchop.recover.loop import recover
from jaxchop.recover.outcome import Recovered
from jaxchop.recover.step import mean_loss_and_gradient
from jaxchop.recover.teacher import beside, distilled
from jaxchop.recover.trainable import way_of
from jaxchop.training import DistillConfig, MeshConfig, PartialConfig, RecoverConfig

LAYERS, KEEP = 4, (0, 2, 3)
KINDS = ["forward", "reverse", "jensen_shannon"]


def learning(weight: float = 0.5, hidden: float = 0.0, **changes: Any) -> RecoverConfig:
  kind, temperature = changes.pop("divergence", "forward"), changes.pop("temperature", 1.0)
  distill = DistillConfig(weight=weight, hidden=hidden, divergence=kind, temperature=temperature)
  return settings(distill=distill, **changes)


def uneven() -> Batch:
  return Batch(records(3), (np.arange(12) < np.array([[12], [7], [1], [5]])).astype(np.float32))


def gradient(config: RecoverConfig, student, teacher, keep=KEEP, accumulate: int = 1):
  def objective(student, batch):
    return distilled(student, teacher, keep, batch, config)

  run = jax.jit(lambda s: mean_loss_and_gradient(objective, s, uneven(), accumulate, has_aux=True))
  (_, told), grads = run(student)
  return told, grads


def run(folder: Path, config: RecoverConfig, *, number: int = 0, at: int = -1) -> Recovered:
  # Weights as large as those of a model that has learnt something.
  teacher = jax.tree.map(lambda leaf: 8 * leaf if leaf.ndim == 2 else leaf, tiny_model(LAYERS))
  student = keep_layers(teacher, KEEP)
  about = {"data": "count"}
  return recover(student, Records(number, at), config, folder, meta=about, teacher=teacher, keep=KEEP)


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_has_nothing_to_learn_from_itself(kind: str) -> None:
  model = tiny_model(LAYERS)
  told, grads = gradient(learning(1.0, hidden=1.0, divergence=kind), model, model, keep=(0, 1, 2, 3))
  plain, own = gradient(learning(0.0, hidden=1.0), model, model, keep=(0, 1, 2, 3))
  assert abs(told["divergence"]) < 1e-6 and told["hidden_error"] == 0 and told["loss"] == plain["loss"]
  largest = max(np.abs(grad).max() for grad in flatten(own).values())
  assert max(np.abs(grad).max() for grad in flatten(grads).values()) < 1e-5 * largest


def test_hidden_states_are_matched_behind_each_layer_with_its_original() -> None:
  teacher = tiny_model(LAYERS)
  student, batch = keep_layers(tiny_model(LAYERS, seed=1), KEEP), uneven()
  ids, share = jnp.asarray(batch.ids[:, :-1]), batch.weight / batch.weight.sum()
  ours, theirs = (np.asarray(hidden_and(m, ids, lambda _, x, __: x)[1]) for m in (student, teacher))
  apart = ((ours - theirs[list(KEEP)]) ** 2).sum(-1) / (theirs[list(KEEP)] ** 2).sum(-1)
  told, _ = gradient(learning(hidden=2.0), student, teacher)
  np.testing.assert_allclose(told["hidden_error"], (apart * share).sum((1, 2)).mean(), rtol=1e-5)


@pytest.mark.parametrize("changes", [{"layout": "unrolled", "remat": "none"}, {"remat": "full"}], ids=str)
def test_every_way_to_compute_it_gives_the_same(changes: dict[str, Any]) -> None:
  teacher, config = tiny_model(LAYERS), learning(0.4, hidden=0.3, temperature=2.0)
  student = keep_layers(tiny_model(LAYERS, seed=1), KEEP)
  want, wanted = gradient(config, student, teacher)
  found, grads = gradient(dataclasses.replace(config, **changes), student, teacher, accumulate=2)
  assert found.keys() == want.keys() == {"loss", "divergence", "hidden_error"}
  for name in want:
    np.testing.assert_allclose(found[name], want[name], rtol=1e-5, atol=1e-6)
  for name, grad in flatten(grads).items():
    np.testing.assert_allclose(grad, flatten(wanted)[name], rtol=1e-3, atol=1e-6, err_msg=name)


def test_weights_that_both_have_and_neither_trains_are_held_once() -> None:
  teacher = tiny_model(LAYERS)
  config = settings(trainable="partial", partial=PartialConfig(last=1))
  way = way_of(config, CONFIG, len(KEEP))
  student = way.prepare(keep_layers(teacher, KEEP))
  trained, frozen = way.split(student)
  found, own = beside(teacher, student, frozen, DistillConfig(weight=1.0), KEEP)
  # The teacher's own are its dropped layer, and what the student changes: its norm, and its last layer.
  layers = {name.split(".")[2] for name in own if name.startswith("teacher.layers")}
  assert layers == {"1", "3"} and {n for n in own if ".layers." not in n} == {"teacher.norm.scale"}
  assert found.names["layers.2.mlp.up.kernel"] == "layers.1.mlp.up.kernel" and not set(own) & set(trained)
  jax.tree.map(np.testing.assert_array_equal, found.join({**frozen, **own}), teacher)


def test_a_student_comes_nearer_to_its_teacher_and_the_curve_says_so(tmp_path: Path) -> None:
  done = run(tmp_path, learning(1.0, hidden=0.5))
  lines = read_curve(tmp_path / "metrics.jsonl")
  assert all(line["loss"] > 0 for line in lines)
  assert lines[-1]["divergence"] < 0.7 * lines[0]["divergence"]
  assert lines[-1]["hidden_error"] < lines[0]["hidden_error"]
  # The teacher is no part of the run: what comes of it is the student alone.
  assert set(flatten(done.model)) == set(flatten(tiny_model(len(KEEP))))
  found = recovered_parts(tmp_path / "checkpoints", CONFIG, len(KEEP))
  jax.tree.map(np.testing.assert_array_equal, found.model, done.model)
  assert not (tmp_path / "frozen").exists()
  assert done.plan is not None and done.plan["flops_per_step"] > 0


@pytest.mark.slow
@pytest.mark.optimised
def test_a_restart_is_the_same_run(tmp_path: Path) -> None:
  config = learning(0.5, hidden=0.5, trainable="partial", partial=PartialConfig(last=2))
  whole = run(tmp_path / "whole", config)
  with pytest.raises(Interrupted):
    run(tmp_path / "cut", config, number=signal.SIGINT, at=7)
  again = run(tmp_path / "cut", config)
  assert curve(tmp_path / "cut") == curve(tmp_path / "whole")
  jax.tree.map(np.testing.assert_array_equal, again.model, whole.model)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [MeshConfig(fsdp=2, tensor=2), MeshConfig(data=2, fsdp=1, context=2)], ids=str)
def test_on_several_devices_it_is_the_run_of_one(tmp_path: Path, mesh: MeshConfig) -> None:
  found = []
  for name, devices in (("one", MeshConfig(fsdp=1)), ("several", mesh)):
    run(tmp_path / name, learning(0.5, hidden=0.5, divergence="jensen_shannon", steps=4, mesh=devices))
    lines = read_curve(tmp_path / name / "metrics.jsonl")
    found.append([[line[key] for key in ("loss", "divergence", "hidden_error")] for line in lines])
  np.testing.assert_allclose(*found, rtol=0, atol=1e-5)


def test_settings_that_teach_nothing_are_refused(tmp_path: Path) -> None:
  with pytest.raises(UsageError, match=r"recover\.distill: give a teacher and a weight or hidden above 0"):
    run(tmp_path, settings(distill=DistillConfig()))


@pytest.mark.parametrize(
  ("given", "words"),
  [
    ({"weight": 1.5}, r"recover\.distill\.weight is 1\.5; it is at least 0 and at most 1"),
    ({"weight": 0.5, "temperature": 0.0}, r"recover\.distill\.temperature is 0\.0; it is above 0"),
    ({"weight": 1.0, "hidden": 0.5, "cache_top": 8}, r"cache_top is 8: it keeps what a teacher expects next"),
    ({"hidden": 0.5, "cache_top": 8}, r"cache_top is 8"),
  ],
)
def test_settings_that_make_no_sense_are_refused(given: dict[str, Any], words: str) -> None:
  with pytest.raises(UsageError, match=words):
    DistillConfig(**given)


def test_a_teacher_of_another_shape_teaches_only_what_it_can() -> None:
  student, teacher = tiny_model(2), tiny_model(config=dataclasses.replace(CONFIG, vocab_size=50))
  with pytest.raises(UsageError, match=r"recover\.distill\.teacher: it has 50 tokens, the student 61"):
    beside(teacher, student, {}, DistillConfig(weight=1.0), None)
  with pytest.raises(UsageError, match=r"recover\.distill\.hidden: nothing says which"):
    beside(tiny_model(3), student, {}, DistillConfig(hidden=1.0), None)
