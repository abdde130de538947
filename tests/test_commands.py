"""Every sub-command end to end on a tiny model, as a person and as a program would call it."""

import json
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from jaxchop.cli import main
from jaxchop.prune.criteria import DEFINITIONS
from jaxchop.recover.journal import read_journal

TEXT = "\n\n".join(f"Paragraph {n} says that {n} and {n + 1} make {2 * n + 1}, as everyone knows." for n in range(400))
SMALL = ["--data.source", "text.txt", "--data.calibration_share", "0.2", "--data.held_out_share", "0.2"]
SCORING = ["--windows", "2", "--window", "32", "--batch_size", "2"]
FEW = [part.replace("--", "--score.") for part in SCORING] + SMALL
MEASURING = [
  "--window",
  "32",
  "--stride",
  "32",
  "--max_windows",
  "2",
  "--batch_size",
  "2",
  "--sample_tokens",
  "2",
  "--suite",
  "perplexity",
]


@pytest.fixture
def here(tmp_path, monkeypatch):
  """A folder of one's own, with some text in it."""
  monkeypatch.chdir(tmp_path)
  Path("text.txt").write_text(TEXT)
  return tmp_path


@pytest.fixture
def model(tiny_folder):
  return str(tiny_folder())


def answer(capsys, *argv):
  """Returns what a command prints as JSON; nothing else may stand on standard output."""
  assert main([*map(str, argv), "--json"]) == 0
  return json.loads(capsys.readouterr().out)


def said(capsys, *argv):
  """Returns what a command prints for people."""
  assert main([*map(str, argv), "--quiet"]) == 0
  return capsys.readouterr().out


def test_inspect_counts_parameters_by_part(model, capsys):
  found = answer(capsys, "inspect", model)
  assert sum(found["parameters_by_part"].values()) == found["parameters"]
  assert f"{found['parameters']:,}" in said(capsys, "inspect", model)


def test_data_build_writes_a_cache_that_data_inspect_checks(here, model, capsys):
  build = ["data", "build", "text.txt", "-o", "cache", "--model", model, "--seq_len", "32", "--workers", "1"]
  built = answer(capsys, *build, "--segments", "true")
  assert built["records"] * 32 + built["dropped_tokens"] + 1 == built["tokens"] and built["segments"]
  found = answer(capsys, "data", "inspect", "cache")
  assert found["ok"] and found["digest"] == built["digest"] and found["sources"][0]["name"] == "text.txt"
  assert "every byte is as it was written" in said(capsys, "data", "inspect", "cache")
  assert main([*build, "--quiet"]) == 2
  assert "jaxchop data build: error: cache: holds a finished cache" in capsys.readouterr().err
  assert f"{built['records']:,} records of 32 tokens" in said(capsys, *build, "--overwrite")


@pytest.mark.slow
def test_compare_lays_recipes_over_a_base(here, model, capsys):
  base = {"model": model, "data": {"source": "text.txt", "calibration_share": 0.2, "held_out_share": 0.2}}
  base |= {
    "prune": {"drop": "1"},
    "evaluate": {"window": 32, "stride": 32, "max_windows": 2, "batch_size": 2, "suite": ["perplexity"]},
  }
  base |= {"recover": {"batch_size": 2, "seq_len": 32, "mesh": {"fsdp": 1}}}
  for name, content in {
    "base": base,
    "all": {},
    "head": {"recover": {"trainable": "partial", "partial": {"last": 0}}},
  }.items():
    Path(f"{name}.yaml").write_text(json.dumps(content))
  asked = ["compare", "all.yaml", "head.yaml", "--base", "base.yaml", "-o", "ways", "--equal", "tokens"]
  found = answer(capsys, *asked, "--tokens", "64")
  assert [(row["way"], row["tokens"], row["budget"]) for row in found["rows"]] == [
    ("all", 64, "tokens"),
    ("head", 64, "tokens"),
  ]
  words = said(capsys, *asked, "--tokens", "64")
  assert "At equal tokens" in words and "compare.md" in words and "The plan removes layer 1" in words
  assert main(["compare", "all.yaml", *asked[1:], "--quiet"]) == 2
  assert "two recipes have the same file name" in capsys.readouterr().err


@pytest.mark.slow
def test_forecast_probes_a_recipe_or_a_run(here, model, capsys):
  recipe = {"out": "run", "model": model, "data": {"source": "text.txt", "calibration_share": 0.2}}
  recipe |= {
    "prune": {"drop": "1"},
    "evaluate": {"window": 32, "stride": 32, "max_windows": 4, "batch_size": 2, "suite": ["perplexity"]},
  }
  recipe |= {"recover": {"steps": 64, "batch_size": 2, "seq_len": 32, "mesh": {"fsdp": 1}}}
  Path("recipe.yaml").write_text(json.dumps(recipe))
  asked = ["--tokens", "128", "256", "512", "1024", "--target", "200", "--chip_tflops", "2"]
  found = answer(capsys, "forecast", "recipe.yaml", *asked)
  assert [probe["tokens"] for probe in found["probes"]] == [128, 256, 512, 1024]
  assert found["probes"][0]["perplexity"] > found["probes"][-1]["perplexity"]
  assert [point["tokens"] for point in found["expected"]] == [1024 << times for times in range(1, 9)]
  assert any(point["tokens"] == 64 * 2 * 32 for point in found["expected"])
  curves = {
    path.parent.name: path.read_text().splitlines() for path in Path("run/forecast/runs").glob("*/metrics.jsonl")
  }
  assert {name.split("-")[1]: len(lines) for name, lines in curves.items()} == {"2": 2, "4": 4, "8": 8, "16": 16}
  Path("run/recipe.yaml").write_text(json.dumps(recipe | {"prune": {"drop": "2"}}))
  Path("run/plan.json").write_text(Path("run/forecast/pruned/plan.json").read_text())
  words = " ".join(said(capsys, "forecast", "run", *asked).split())
  assert "perplexity 200" in words
  assert "twice as many gain less than 0.01 nats" in words
  assert main(["forecast", "recipe.yaml", "--tokens", "128", "256", "--quiet"]) == 2
  assert "at least 4 different numbers of tokens" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["compare", "forecast"])
def test_a_comparison_in_several_processes_is_refused(here, model, capsys, monkeypatch, command):
  recipe = {"out": "run", "model": model, "prune": {"drop": "1"}}
  Path("recipe.yaml").write_text(json.dumps(recipe))
  for name, value in {"COORDINATOR_ADDRESS": "host:99", "NUM_PROCESSES": "2", "PROCESS_ID": "0"}.items():
    monkeypatch.setenv(f"JAX_{name}", value)
  assert main([command, "recipe.yaml", "-o", "out", "--quiet"]) == 2
  said = capsys.readouterr().err
  assert f"{command} works in one process, and this is one of 2: start it once, on a single host" in said
  assert not Path("out").exists()


def test_data_build_lays_conversations_into_records(here, model, capsys):
  rows = [{"instruction": f"Say {n}.", "output": f"It is {n}."} for n in range(20)]
  Path("talks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  build = ["data", "build", "-o", "talks", "--model", model, "--seq_len", "64", "--workers", "1"]
  built = answer(capsys, *build, "chat:talks.jsonl")
  assert built["targets"] and built["segments"] and built["documents"] == 20 and built["dropped_tokens"] == 0
  assert "documents apart, answers alone predicted" in said(capsys, *build, "chat:talks.jsonl", "--overwrite")
  assert main([*build, "chat:talks.jsonl", "text.txt", "--quiet"]) == 2
  assert "a cache holds text or conversations, not both; build two" in capsys.readouterr().err


def test_score_prune_and_plan_work_on_each_others_files(here, model, capsys):
  scores = answer(capsys, "score", model, "-o", "scores.json", *SCORING, *SMALL)
  values = scores["criteria"]["block_influence"]["per_layer"]
  assert json.loads(Path("scores.json").read_text()).items() <= scores.items()
  choice = ["--criterion", "block_influence", "--count", "2", "--scores", "scores.json", "--plan-only"]
  plan = answer(capsys, "prune", model, *choice, "-o", "plan.json")
  assert plan["drop"] == sorted(sorted(range(len(values)), key=lambda layer: (values[layer], -layer))[:2])
  pruned = answer(capsys, "prune", model, "--plan", "plan.json", "-o", "small")
  assert pruned["keep"] == plan["keep"]
  assert answer(capsys, "inspect", "small")["layers"] == len(plan["keep"])
  assert "removes" in said(capsys, "prune", model, "--drop", "1", "--plan-only")
  assert "block_influence" in said(capsys, "score", model, "-o", "again.json", *SCORING, *SMALL)


def test_every_criterion_is_scored_at_once_and_set_side_by_side(here, model, capsys):
  ask = ["score", model, "-o", "scores.json", "--criteria", "all", *SCORING, *SMALL]
  found = answer(capsys, *ask, "--count", "2")
  assert set(found["criteria"]) == set(DEFINITIONS)
  assert all(len(verdict["drop"]) == 2 for name, verdict in found["chosen"].items() if name != "perplexity_greedy")
  table = said(capsys, *ask, "--count", "1")
  assert all(name in table for name in DEFINITIONS)
  assert "perplexity of the whole model" in table
  grid = said(capsys, *ask, "--count", "1", "--compare")
  assert "x" in grid
  assert "cka" in grid
  # In 80 columns, too.
  assert grid.split("\n")[0].split() == ["layer", *(str(place + 1) for place in range(len(DEFINITIONS)))]


def test_what_was_scored_is_not_scored_again(here, model, capsys, caplog):
  ask = ["score", model, "-o", "scores.json", *SCORING, *SMALL]
  first = answer(capsys, *ask, "--criteria", "[taylor,angular]")
  caplog.clear()
  second = answer(capsys, *ask, "--criteria", "[taylor,angular,magnitude_l1]")
  assert not [line for line in caplog.messages if "Scoring layers" in line]
  assert {name: second["criteria"][name] for name in ("taylor", "angular")} == first["criteria"]
  answer(capsys, *ask, "--criteria", "[angular]", "--skip_first", "true")
  assert [line for line in caplog.messages if "Scoring layers" in line]


def test_rounds_score_what_is_left(here, model, capsys):
  plan = answer(
    capsys, "prune", model, "--criterion", "perplexity", "--count", "2", "--rounds", "2", "--plan-only", *FEW
  )
  anywhere = ["--greedy_rounds", "2", "--greedy_first", "0", "--greedy_last", "0"]
  greedy = answer(
    capsys, "score", model, "-o", "s.json", "--criteria", "[perplexity_greedy]", *anywhere, *SCORING, *SMALL
  )
  order = greedy["criteria"]["perplexity_greedy"]["per_layer"]
  assert plan["drop"] == [layer for layer, place in enumerate(order) if place <= 2]


MERGES = {
  "laco": ["--count", "1", "--merging.layers_per_merge", "2", "--merging.interval", "1"],
  "slm": ["--merging.threshold", "0.2", "--merging.mode", "rdsc"],
  "mka": ["--count", "2"],
  "streamline": ["--criterion", "cosine", "--count", "1", "--merging.batch_size", "2"],
  "linear_map": ["--drop", "1:3"],
}
FITTING = ["--merging.windows", "4", "--merging.window", "32"]


# Each is checked by a process of its own. At each push one that merges and one that fits; tests/prune proves them all.
@pytest.mark.parametrize(
  "method", [name if name in ("laco", "streamline") else pytest.param(name, marks=pytest.mark.slow) for name in MERGES]
)
def test_every_merge_is_pruned_exported_and_checked(here, model, method, capsys):
  ask = ["prune", model, "--merge", method, *MERGES[method], *FITTING, *FEW]
  made = answer(capsys, *ask, "-o", "small")
  assert made["merges"] or made["repair"]
  assert len(made["keep"]) < made["layers"]
  report = answer(capsys, "check", "small")
  (source,) = (line for line in report["lines"] if line["name"] == "source")
  assert source["ok"] is (None if made["repair"] else True)
  assert answer(capsys, "inspect", "small")["layers"] == len(made["keep"])


def test_a_merge_differs_from_dropping_and_its_plan_makes_it_again(here, model, capsys):
  ask = ["--merge", "mka", "--count", "2", *FEW, *FITTING]
  plan = answer(capsys, "prune", model, *ask, "--plan-only", "-o", "plan.json")
  answer(capsys, "prune", model, "--plan", "plan.json", "-o", "merged")
  answer(capsys, "prune", model, *ask, "-o", "again")
  answer(capsys, "prune", model, "--keep", ",".join(map(str, plan["keep"])), "-o", "dropped")
  weights = [Path(name, "model.safetensors").read_bytes() for name in ("merged", "again", "dropped")]
  assert weights[0] == weights[1] != weights[2]


@pytest.mark.parametrize(
  ("wish", "words"),
  [
    (["--merge", "laco", "--criterion", "cosine", "--count", "1"], "chooses the layers itself"),
    (["--merge", "mka"], "how many layers"),
    (["--merge", "slm", "--count", "1"], "merging.threshold"),
    (["--merge", "linear_map", "--drop", "1,3"], "one run"),
    (["--merge", "linear_map", "--drop", "0:2"], "0"),
    (["--merge", "laco", "--count", "1", "--merging.threshold", "0.5"], "merging.threshold"),
    (["--criterion", "perplexity", "--count", "2", "--rounds", "3"], "rounds"),
  ],
)
def test_a_wish_that_contradicts_itself_is_refused(here, model, wish, words, capsys):
  assert main(["prune", model, *wish, "-o", "small", *FEW, *FITTING]) == 2
  assert words in capsys.readouterr().err.splitlines()[-1]
  assert not Path("small").exists()


def test_a_plan_of_another_model_is_refused(here, model, tiny_folder, capsys):
  answer(capsys, "prune", model, "--drop", "1", "--plan-only", "-o", "plan.json")
  longer = str(tiny_folder(num_hidden_layers=6))
  assert main(["prune", longer, "--plan", "plan.json", "-o", "small"]) == 2
  assert "made for a model of" in capsys.readouterr().err
  assert not Path("small").exists()


def test_a_pruned_folder_passes_its_check_and_a_damaged_one_does_not(here, model, capsys):
  said(capsys, "prune", model, "--drop", "1:3", "-o", "small")
  assert answer(capsys, "check", "small")["ok"]
  shard = Path("small/model.safetensors")
  shard.write_bytes(shard.read_bytes()[:-2] + b"\x01\x02")
  assert main(["check", "small", "--quiet"]) == 1
  assert "NOT sound" in capsys.readouterr().out


def test_recover_export_and_evaluate_a_run(here, model, capsys, monkeypatch):
  monkeypatch.setenv("JAXCHOP_CACHE", "kept")
  training = ["--steps", "3", "--batch_size", "2", "--seq_len", "32", "--checkpoint_every", "2"]
  along = ["--evaluate_every", "3", "--evaluate_windows", "2", "--evaluate_suite", "[documents]"]
  again = answer(capsys, "recover", model, "-o", "run", *training, *along, *SMALL)
  assert again["steps"] == 3
  (told,) = (event for event in read_journal(Path("run/journal.jsonl")) if event["event"] == "measured")
  assert told["step"] == 3 and "each for itself" in told["figures"]["perplexity a word"]["protocol"]
  assert len(Path("run/metrics.jsonl").read_text().splitlines()) == 3
  assert answer(capsys, "export", "run", "-o", "out")["check"]["ok"]
  models = answer(capsys, "evaluate", model, "run", "out", *MEASURING, *SMALL)["models"]
  by_path = {entry["path"]: next(iter(entry["perplexity"].values())) for entry in models}
  assert by_path["run"] == by_path["out"] != by_path[model]
  assert answer(capsys, "evaluate", "run@2", *MEASURING, *SMALL)["models"][0]["digest"] != models[1]["digest"]
  assert main(["evaluate", "run@1", *MEASURING, *SMALL, "--quiet"]) == 1
  assert "checkpoint of step 1 is here (steps there: 2, 3)" in capsys.readouterr().err
  table = said(capsys, "evaluate", model, "out", *MEASURING, "capability", "--probe_items", "1", *SMALL)
  assert "window 32" in table and "1 item of each level" in " ".join(table.split())
  assert all(word in table for word in ("nats", "small tasks: sorting", "points", "%", "±"))


def test_adapters_of_a_run_are_written_for_peft(here, model, capsys):
  training = ["--steps", "2", "--batch_size", "2", "--seq_len", "32", "--trainable", "lora", "--adapter.rank", "2"]
  answer(capsys, "recover", model, "-o", "run", *training, *SMALL)
  found = answer(capsys, "export", "run", "-o", "adapter", "--adapter", model)
  assert found["parameters"] == sum(tensor.size for tensor in load_file("adapter/adapter_model.safetensors").values())
  settings = json.loads(Path("adapter/adapter_config.json").read_text())
  assert (settings["base_model_name_or_path"], settings["r"]) == (model, 2)
  assert model in said(capsys, "export", "run", "-o", "adapter", "--adapter", model, "--overwrite")
  answer(capsys, "prune", model, "--drop", "1", "-o", "small")
  assert main(["export", "run", "-o", "x", "--adapter", "small", "--quiet"]) == 2
  assert "small is not the model that run trained, of 4 layers" in capsys.readouterr().err
  assert not Path("x").exists()


def test_a_run_without_adapters_has_none_to_write(here, model, capsys):
  answer(capsys, "recover", model, "-o", "run", "--steps", "1", "--batch_size", "2", "--seq_len", "32", *SMALL)
  assert main(["export", "run", "-o", "x", "--adapter", model, "--quiet"]) == 2
  assert "run trained all, not adapters" in capsys.readouterr().err


def test_generate_continues_each_prompt_and_sampling_is_decided_by_the_seed(model, capsys):
  ask = ["generate", model, "--prompt", "One two", "--prompt", "A", "--max_new_tokens", "4"]
  greedy = answer(capsys, *ask)["continuations"]
  assert [found["prompt"] for found in greedy] == ["One two", "A"]
  drawn = [answer(capsys, *ask, "--temperature", "5", "--seed", seed)["continuations"] for seed in (1, 1, 2)]
  assert drawn[0] == drawn[1] != drawn[2]
  assert "One two" in said(capsys, *ask)


def test_speed_sets_models_side_by_side(model, here, capsys):
  said(capsys, "prune", model, "--drop", "1", "-o", "smaller")
  ask = ["speed", model, "smaller", "--prompt_tokens", "8", "--new_tokens", "2", "--repeats", "1"]
  found = answer(capsys, *ask, "--batch", "1", "2")
  assert [(row["path"], row["batch"]) for row in found["models"]] == [
    (path, batch) for batch in (1, 2) for path in (model, "smaller")
  ]
  assert found["models"][0]["gain"] is None and found["models"][1]["gain"]["removed"] == 1
  assert found["models"][0]["decode_tokens_per_second"] > 0 and found["memory"]["bytes"] > 0
  shown = said(capsys, *ask, "--protocol", "sleb", "--batch", "1")
  assert "1.00x" in shown and "SLEB" in shown and "1 layers fewer" in shown


def test_speed_measures_a_drafter_with_its_target(model, here, capsys):
  ask = ["speed", "--draft", model, "--target", model, "--drafted", "2", "--prompts", "1", *SMALL]
  ask += ["--prompt_tokens", "8", "--new_tokens", "4"]
  found = answer(capsys, *ask)
  assert found["lengths"][0]["rounds"] == [0, 0, 1] and found["lengths"][0]["differing"] == {}
  assert "every text is the target's greedy one" in " ".join(said(capsys, *ask).split())


@pytest.mark.parametrize(
  ("argv", "code", "words"),
  [
    (["prune", "{model}", "--drop", "1"], 2, "-o"),
    (["prune", "{model}", "--drop", "9", "-o", "x"], 2, "outside"),
    (["export", "{model}", "-o", "x"], 2, "run folder"),
    (["score", "{model}", "-o", "s.json", "--data.source", "absent.txt"], 2, "absent.txt"),
    (["score", "{model}", "-o", "s.json", "--windows", "100000", *SMALL], 1, "score.windows"),
    (["generate", "{model}", "--prompt", ""], 2, "empty"),
    (["report", "nowhere"], 2, "nowhere"),
    (["check", "nowhere"], 2, "nowhere"),
    (["inspect", "gs://b/model"], 2, "read from folders"),
    (
      ["prune", "{model}", "--drop", "1", "-o", "gs://b/small"],
      2,
      "gs://b/small: models and runs",
    ),
    (["score", "{model}", "-o", "gs://b/s.json"], 2, "gs://b/s.json"),
    (["recover", "{model}", "-o", "gs://b/run"], 2, "gs://b/run"),
    (["run", "--out", "gs://b/run", "--model", "{model}"], 2, "gs://b/run"),
    (["speed"], 2, "name the models"),
    (["speed", "--draft", "{model}"], 2, "both --draft and --target"),
    (["speed", "{model}", "--draft", "{model}", "--target", "{model}"], 2, "do not go together"),
    (["speed", "--draft", "{model}", "--target", "{model}", "--new_tokens", "1", "2"], 2, "one number"),
  ],
)
def test_bad_requests_are_one_line_and_leave_nothing(here, model, argv, code, words, capsys):
  before = sorted(here.iterdir())
  assert main([part.format(model=model) for part in argv] + ["--quiet"]) == code
  error = capsys.readouterr().err
  assert words in error
  assert error.count("\n") == 1
  assert sorted(here.iterdir()) == before
