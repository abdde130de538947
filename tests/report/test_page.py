"""report.html stands alone, shows what there is, and is text where the run's files hold text."""

import math
import re
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxchop.errors import JaxchopError, UsageError
from jaxchop.report.page import render, write_report
from jaxchop.report.results import Check, Measured, Plan, Run, Sample, Target, read_run

EVIL = '</p></title></style><script>alert(1)</script><img src=x onerror=alert(1)>" onload="x\' {{ 7*7 }} & $x^{$'


class Page(HTMLParser):
  """Tags, attributes and text of a page."""

  def __init__(self, text: str):
    super().__init__()
    self.tags: list[str] = []
    self.attributes: list[tuple[str, str | None]] = []
    self.open: list[str] = []
    self.words: list[str] = []
    self.feed(text)
    self.close()

  def handle_starttag(self, tag, attrs):
    self.tags.append(tag)
    self.attributes += attrs
    if tag not in ("meta", "link", "br"):
      self.open.append(tag)

  def handle_startendtag(self, tag, attrs):
    self.tags.append(tag)
    self.attributes += attrs

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    if "style" not in self.open:
      self.words.append(data)

  @property
  def text(self) -> str:
    return " ".join("".join(self.words).split())


def written(folder) -> Page:
  return Page(write_report(folder).read_text())


def without_figures(folder) -> Page:
  """What most tests look at; drawing is what takes the time."""
  return Page(render(read_run(folder), {}))


def test_a_whole_run_shows_its_headline_numbers(make_run):
  text = without_figures(make_run()).text.replace("\u00a0", " ")
  for words in (
    "SmolLM2-135M-Instruct 30 → 24 layers",
    "12.31 to 27.63 by pruning and to 14.12 by training: 83 % of the gap in log perplexity is closed",
    "1.22× the speed of the original",
    "removes layers 20..25, keeps 0..19 and 26..29",
    "windows of 512 tokens, stride 512",
    "batch 1, prompt of 128 tokens",
    "The capital of France is",
    "its converter knows no tokenizer",
    "4 min 23 s",
    "arXiv 2602.01997",
    "criterion: block_influence",
  ):
    assert words in text


def test_the_page_needs_nothing_else(reported):
  source = (reported / "report.html").read_text()
  page = Page(source)
  assert page.open == [] and not {"script", "img", "iframe"} & set(page.tags)
  links = [value for name, value in page.attributes if name in ("src", "href", "srcset", "data", "action")]
  assert set(links) == {"data:,"}
  assert not [name for name, _ in page.attributes if name.startswith("on")]
  assert not re.search(r"url\((?!#)|@import", source)
  assert "default-src 'none'" in source and "width=device-width" in source


def test_ids_are_unique(reported):
  ids = [value for name, value in Page((reported / "report.html").read_text()).attributes if name == "id"]
  assert len(ids) > 50 and len(set(ids)) == len(ids)


def test_the_same_results_give_the_same_page(reported):
  first = (reported / "report.html").read_bytes()
  assert write_report(reported).read_bytes() == first


def test_the_figures_stand_beside_the_page_as_png(reported):
  pictures = sorted((reported / "figures").iterdir())
  assert [picture.name for picture in pictures] == ["loss.png", "perplexity.png", "scores.png", "speed.png"]
  assert all(picture.read_bytes().startswith(b"\x89PNG") for picture in pictures)
  assert not list(reported.rglob("*.tmp"))


def test_scores_alone_have_a_page_with_all_that_they_say(scored_folder):
  text = Page((scored_folder / "report.html").read_text()).text.replace("\u00a0", " ")
  for words in (
    "jaxchop report only eight",
    "No layers have been chosen yet.",
    "Scored on 16 windows of 256 tokens of calibration text; the whole model has a perplexity of 12.50 there.",
    "Which 2 of the 8 layers each criterion would drop",
    "magnitude l12 and 5–",
    "block influence3..475 %",
    "perplexity run2..3100 %",
    "perplexity greedy3 and 5–",
    "Percent of common layers",
    "Runs of layers",
    "How alike the states are",
    "What the criteria are",
    "angularwhat angular is",
  ):
    assert words in text
  assert "Which layers went" not in text and "(the rule)" not in text and "Recovery" not in text


def test_figures_of_scores_alone_stand_beside_the_page_too(scored_folder):
  pictures = sorted(picture.name for picture in (scored_folder / "figures").iterdir())
  assert pictures == ["agreement.png", "criteria.png", "runs.png", "states.png"]


def test_a_page_with_heat_maps_needs_nothing_else(scored_folder):
  source = (scored_folder / "report.html").read_text()
  page = Page(source)
  ids = [value for name, value in page.attributes if name == "id"]
  assert page.open == [] and not {"script", "img", "image", "iframe"} & set(page.tags)
  assert len(ids) > 50 and len(set(ids)) == len(ids) and not re.search(r"url\((?!#)|@import", source)
  # Wide and narrow of four figures.
  assert page.tags.count("svg") == 8


def test_the_rule_is_told_first_and_stands_out_among_the_criteria(make_scored):
  page = Page(render(make_scored(), {}))
  text = page.text
  assert text.index("angular (the rule)the angle between") < text.index("What each criterion says")
  assert "ckawhat cka is" in text and "angularwhat angular is" not in text
  assert [value for name, value in page.attributes if value == "rule"] == ["rule"]


def test_a_section_with_nothing_to_show_is_left_out(make_run):
  text = without_figures(make_run()).text
  for words in ("What each criterion says", "How sure the choice is", "Runs of layers", "How alike", "Scored on"):
    assert words not in text


def test_one_criterion_with_resamplings_tells_how_sure_it_is(make_scored, many_scores):
  many_scores["criteria"] = {"block_influence": many_scores["criteria"]["block_influence"]}
  text = Page(render(make_scored(scores=many_scores), {})).text.replace("\u00a0", " ")
  assert "How sure the choice is" in text and "block influence3..475 %" in text


def test_a_folder_that_cannot_be_written_is_named_and_nothing_is_left_beside(make_run):
  folder = make_run(summary=None, eval=None, scores=None)
  # A folder stands where the picture belongs.
  (folder / "figures" / "loss.png").mkdir(parents=True)
  with pytest.raises(JaxchopError, match=r"loss\.png: cannot be written"):
    write_report(folder)
  assert not list(folder.rglob("*.tmp")) and not (folder / "report.html").exists()


@pytest.mark.parametrize("left_out", ["scores", "plan", "metrics", "eval", "summary", "recipe"])
def test_a_partial_run_has_a_page_that_says_what_has_not_been_run(make_run, left_out):
  text = without_figures(make_run(**{left_out: None})).text
  missing = {"scores": "scoring layers", "plan": "choosing layers", "metrics": "training", "summary": "measuring speed"}
  assert missing.get(left_out, "") in text
  assert ("Not run:" in text) == (left_out in missing)


def test_a_bare_plan_has_a_page(make_run):
  page = written(make_run(scores=None, metrics=None, eval=None, summary=None, recipe=None))
  assert "What is left is not trained." in page.text and "svg" not in page.tags


def test_an_empty_folder_is_refused_and_left_as_it_was(tmp_path):
  with pytest.raises(UsageError):
    write_report(tmp_path)
  assert not list(tmp_path.iterdir())


def test_text_from_outside_is_text(make_run, plan, summary):
  plan["source"] = {"name": EVIL, "revision": EVIL}
  plan["criterion"] = {"name": EVIL, "definition": EVIL}
  plan["words"] = EVIL
  summary["export"] = summary["machine"] = EVIL
  summary["versions"] = summary["seconds"] = {EVIL: 1.0}
  summary["check"] = {"ok": False, "targets": {EVIL: {"loads": False, "why": EVIL}}, "lines": [EVIL]}
  for name in ("original", "pruned", "recovered"):
    summary[name]["protocol"] = summary[name]["speed_protocol"] = EVIL
  samples = [{"name": "pruned", "samples": [{"prompt": EVIL, "continuation": EVIL}]}]
  scores = {"criteria": {EVIL: {"definition": EVIL, "per_layer": [1.0] * 30}}}
  page = written(make_run(plan=plan, summary=summary, eval={"models": samples}, scores=scores, recipe=EVIL))
  assert page.open == [] and not {"script", "img"} & set(page.tags)
  assert not [name for name, _ in page.attributes if name.startswith("on")]
  assert page.text.count("<script>alert(1)</script>") >= 10 and "{{ 7*7 }}" in page.text


def run_of(text: str) -> Run:
  plan = Plan(source=text, revision=text, layers=2, keep=(0,), drop=(1,), criterion=text, definition=text, words=text)
  model = Measured(
    name="pruned", perplexity=((text, 2.0),), speed_protocol=text, samples=(Sample(prompt=text, continuation=text),)
  )
  check = Check(ok=True, targets=(Target(name=text, loads=True, why=text),), lines=(text,))
  return Run(name=text, recipe=text, plan=plan, models=(model,), check=check, machine=text, versions=((text, text),))


@given(st.text())
def test_no_text_breaks_the_page(text):
  page = render(run_of(text), {})
  assert Page(page).tags == Page(render(run_of("a" if text.strip() else text), {})).tags
  page.encode()


@given(st.text(st.characters(codec="utf-8"), min_size=1).filter(str.isprintable))
def test_printable_text_is_shown_as_it_is(text):
  lines = Page(render(run_of(text), {})).words
  assert text.strip() in "".join(lines)


@pytest.mark.parametrize("letter", ["\x00", "\x1b", "\ud800", "\u202e", "\x85"])
def test_what_cannot_be_shown_becomes_a_replacement_mark(letter):
  page = render(run_of(f"a{letter}b"), {})
  assert letter not in page and "a\ufffdb" in page


@pytest.mark.parametrize("gap", [1.4, 0.0, -3.0, math.nan, math.inf])
def test_any_gap_is_said_honestly(make_run, summary, gap):
  summary["gap_closed"] = gap
  text = without_figures(make_run(summary=summary)).text
  assert ("is closed." in text) == (gap == 1.4 or gap <= 0)
  assert ("no gap is closed" in text) == (gap <= 0)


def test_a_failed_check_is_not_called_passed(make_run, summary):
  summary["check"]["ok"] = False
  assert "did not pass" in without_figures(make_run(summary=summary)).text


@pytest.mark.parametrize(
  ("loads", "said"), [(True, "loads it"), (False, "does not load it"), (None, "could not be told")]
)
def test_a_loader_takes_it_or_not_or_nobody_knows(make_run, summary, loads, said):
  summary["check"]["targets"] = {"vLLM": {"loads": loads, "why": ""}}
  assert f"vLLM{said}" in without_figures(make_run(summary=summary)).text


def test_the_builtin_model_has_the_name_that_others_know(make_run, plan):
  plan["source"] = {"name": "builtin", "revision": None}
  assert without_figures(make_run(plan=plan)).text.count("SmolLM2-135M-Instruct") >= 2
