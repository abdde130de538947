"""A run folder is read as far as it goes, and what is broken in it is named in one line."""

import json
import math

import pytest

from jaxchop.errors import JaxchopError, UsageError
from jaxchop.report.results import read_models, read_run


def test_every_file_is_read(make_run):
  run = read_run(make_run())
  assert run.name == "quickstart" and run.plan.drop == (20, 21, 22, 23, 24, 25)
  assert [model.name for model in run.models] == ["original", "pruned", "recovered"]
  assert len(run.scores[0].per_layer) == len(run.scores[0].interval) == 30
  assert len(run.steps) == 60 and run.tokens == 61_440
  assert run.model("recovered").samples[1].prompt == "The capital of France is"
  assert [target.name for target in run.check.targets if not target.loads] == ["llama.cpp"]
  assert "count: 6" in run.recipe


@pytest.mark.parametrize("left_out", ["scores", "plan", "metrics", "eval", "summary", "recipe"])
def test_any_file_may_be_missing(make_run, left_out):
  run = read_run(make_run(**{left_out: None}))
  assert bool(run.plan) == (left_out != "plan")


def test_a_speed_without_decoded_tokens_is_none(make_run):
  summary = {"original": {"layers": 30, "prefill_tokens_per_second": 900.0, "decode_tokens_per_second": 0.0}}
  (model,) = read_run(make_run(summary=summary, eval=None)).models
  assert model.prefill == 900.0 and model.decode is None


def test_a_folder_without_results_is_a_usage_error(tmp_path):
  with pytest.raises(UsageError, match="holds no results"):
    read_run(tmp_path)
  with pytest.raises(UsageError, match="no such run folder"):
    read_run(tmp_path / "absent")


def test_a_killed_process_leaves_half_a_line_that_does_not_count(make_run):
  folder = make_run()
  with (folder / "metrics.jsonl").open("a") as file:
    file.write('{"step": 61, "lo')
  assert read_run(folder).steps[-1].step == 60


def test_half_a_line_in_the_middle_is_an_error_that_names_it(make_run):
  folder = make_run()
  (folder / "metrics.jsonl").write_text('{"step": 1, "lo\n{"step": 2, "loss": 1.0}\n')
  with pytest.raises(JaxchopError, match=r"metrics\.jsonl: line 1 is not JSON"):
    read_run(folder)


def test_of_a_step_done_twice_the_later_line_counts(make_run):
  steps = read_run(
    make_run(metrics=[{"step": 1, "loss": 9.0}, {"step": 2, "loss": 8.0}, {"step": 1, "loss": 3.0}])
  ).steps
  assert [(step.step, step.loss) for step in steps] == [(1, 3.0), (2, 8.0)]


def test_lines_without_a_loss_are_not_steps(make_run):
  assert len(read_run(make_run(metrics=[{"step": 1, "loss": 2.0}, {"event": "save"}])).steps) == 1


def test_a_perplexity_without_its_protocol_is_not_shown():
  assert read_models({"original": {"perplexity": 12.3}})[0].perplexity == ()


def test_what_the_summary_lacks_comes_from_the_evaluation(make_run):
  run = read_run(make_run(summary=None))
  assert run.model("pruned").perplexity[0][1] == 27.63


@pytest.mark.parametrize("text", ["[]", "{", "3", '"x"', "\ufeff{}"])
def test_a_file_that_is_no_object_is_named(make_run, text):
  folder = make_run()
  (folder / "eval.json").write_text(text)
  with pytest.raises(JaxchopError, match=r"eval\.json"):
    read_run(folder)


def test_bytes_that_are_no_text_are_named(make_run):
  folder = make_run()
  (folder / "recipe.yaml").write_bytes(b"\xff\xfe\x00")
  with pytest.raises(JaxchopError, match=r"recipe\.yaml: is not UTF-8"):
    read_run(folder)


@pytest.mark.parametrize(
  ("path", "value", "named"),
  [
    (("original", "layers"), "thirty", "original: layers is 'thirty', expected a whole number"),
    (("original", "layers"), True, "layers is True"),
    (("original", "perplexity"), 10**400, "perplexity is 1000"),
    (("original",), [1], r"original: \[1\] stands where an object"),
    (("seconds", "load"), "long", "seconds: load is 'long', expected a number"),
    (("check", "ok"), "yes", "check: ok is 'yes', expected true or false"),
    (("check", "lines"), "all", "check: lines is 'all', expected a list"),
    (("machine",), {"cpus": 2}, "machine is {'cpus': 2}, expected text"),
  ],
)
def test_a_field_of_the_wrong_type_is_named(make_run, summary, path, value, named):
  *parents, last = path
  place = summary
  for parent in parents:
    place = place[parent]
  place[last] = value
  with pytest.raises(JaxchopError, match=named) as error:
    read_run(make_run(summary=summary))
  assert "\n" not in str(error.value) and len(str(error.value)) < 200


@pytest.mark.parametrize("keep", [[], list(range(30)), [*range(23), 29.0], [*range(23), 30], [0] * 24])
def test_a_plan_that_is_no_split_of_the_layers_is_refused(make_run, plan, keep):
  with pytest.raises(JaxchopError, match=r"plan\.json"):
    read_run(make_run(plan={**plan, "keep": keep}))


def test_a_plan_of_absurdly_many_layers_is_refused_at_once(make_run, plan):
  with pytest.raises(JaxchopError, match="are not the model's layers"):
    read_run(make_run(plan={**plan, "layers": 10**12}))


def test_scores_of_another_model_are_refused(make_run):
  other = {"criteria": {"magnitude_l1": {"definition": "", "per_layer": [1.0] * 32}}}
  with pytest.raises(JaxchopError, match=r"magnitude_l1 has 32 layers, plan\.json has 30"):
    read_run(make_run(scores=other))


def test_numbers_that_are_not_finite_are_read_as_they_are(make_run, summary):
  summary["pruned"]["perplexity"] = math.inf
  assert "Infinity" in json.dumps(summary)
  assert read_run(make_run(summary=summary)).model("pruned").perplexity[0][1] == math.inf
