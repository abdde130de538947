"""The model card: front matter as the Hub reads it, the story of a whole run or of a bare prune, nothing active."""

import math

import pytest
import yaml
from huggingface_hub import ModelCard, ModelCardData
from hypothesis import given
from hypothesis import strategies as st

from jaxchop.errors import JaxchopError
from jaxchop.report.card import model_card

BASE = "HuggingFaceTB/SmolLM2-135M-Instruct"


def front(card: str) -> dict:
  return yaml.safe_load(card.split("---\n")[1])


@pytest.fixture
def whole(plan, summary) -> str:
  return model_card(
    name="SmolLM2-24L",
    plan=plan,
    base_model=BASE,
    license="apache-2.0",
    languages=["en"],
    datasets=["org/text"],
    summary=summary,
    recipe="prune:\n  count: 6\n",
  )


def test_the_hub_reads_the_front_matter(whole):
  data = ModelCard(whole).data
  assert isinstance(data, ModelCardData)
  assert data.base_model == BASE and data.license == "apache-2.0" and data.library_name == "transformers"
  assert data.to_dict()["base_model_relation"] == "finetune" and data.pipeline_tag == "text-generation"
  assert data.language == ["en"] and data.datasets == ["org/text"] and "depth-pruning" in data.tags
  (result,) = data.eval_results
  assert (result.metric_type, result.metric_value, result.task_type) == ("perplexity", 14.12, "text-generation")
  assert "stride 512" in result.metric_name


def test_the_story_is_told(whole):
  text = whole.replace("\u00a0", " ")
  for words in (
    f"{BASE} with 6 of its 30 decoder layers removed, then trained on 61,440 tokens",
    "removes layers 20..25, keeps 0..19 and 26..29",
    "**block influence**: mean over tokens",
    "| Parameters | 134.5 M | 113.3 M (−15.8 %) | 113.3 M (−15.8 %) |",
    "¹ windows of 512 tokens",
    "83 % of the gap",
    "arithmetic",
    "AutoModelForCausalLM.from_pretrained",
    "```yaml\nprune:\n  count: 6\n```",
  ):
    assert words in text


def test_a_bare_prune_has_a_card_that_says_it_is_not_trained(plan):
  card = model_card(name="tiny", plan=plan)
  assert "not trained afterwards" in card and "## Results" not in card and "arithmetic" in card
  assert set(front(card)) == {"library_name", "pipeline_tag", "tags"}
  assert ModelCard(card).data.eval_results is None


def test_a_bare_prune_may_give_its_sizes(plan, summary):
  sizes = {name: {key: summary[name][key] for key in ("layers", "parameters")} for name in ("original", "pruned")}
  card = model_card(name="tiny", plan=plan, summary=sizes).replace("\u00a0", " ")
  assert "| Parameters | 134.5 M | 113.3 M (−15.8 %) |" in card and "model-index" not in front(card)


def test_the_results_are_those_of_the_exported_model(plan, summary):
  card = model_card(name="tiny", plan=plan, summary={"original": summary["original"]})
  assert "model-index" not in front(card)


def test_a_value_that_is_not_finite_is_no_result(plan, summary):
  summary["recovered"]["perplexity"] = math.inf
  assert "model-index" not in front(model_card(name="tiny", plan=plan, summary=summary))


def test_folders_of_the_machine_stay_there(plan):
  plan["source"]["name"] = "/home/someone/models/tiny"
  assert "someone" not in model_card(name="tiny", plan=plan)


def test_a_broken_plan_is_named(plan):
  with pytest.raises(JaxchopError, match=r"plan\.json: keep and drop"):
    model_card(name="tiny", plan={**plan, "keep": [0]})


@given(st.text(min_size=1))
def test_no_name_breaks_the_front_matter_or_the_headline(text):
  plan = {"layers": 2, "keep": [0], "drop": [1], "source": {"name": text}, "words": text}
  card = model_card(
    name=text, plan=plan, base_model=text, license=text, summary={"pruned": {"perplexity": 2.0, "protocol": text}}
  )
  found = yaml.safe_load(card[4 : card.index("\n---\n")])
  assert found["base_model"] == text and found["model-index"][0]["name"] == text


def test_active_text_is_made_inert(plan):
  plan["words"] = "x | y\n# not a heading <script>alert(1)</script> [link](http://x)"
  card = model_card(name="tiny", plan=plan)
  assert r"x \| y # not a heading \<script\>alert(1)\</script\> \[link\](http://x)" in card


def test_a_recipe_cannot_close_its_fence(plan):
  card = model_card(name="tiny", plan=plan, recipe="a: |\n  ```\n  # out\n")
  assert card.endswith("````yaml\na: |\n  ```\n  # out\n````\n")
