import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxchop.data.sources import Document, documents
from jaxchop.data.split import paragraph_keys, split_documents, without_overlap
from jaxchop.errors import JaxchopError, UsageError

# A few paragraphs that many documents share, long and short ones.
PARAGRAPHS = [f"paragraph {n} has more than a few words" for n in range(30)] + ["See also:", "Note:"]
TEXTS = st.lists(st.sampled_from(PARAGRAPHS), min_size=1, max_size=6).map("\n\n".join)


@st.composite
def corpora(draw):
  texts = draw(st.lists(TEXTS, min_size=3, max_size=25))
  return [Document(f"doc:{number}", text) for number, text in enumerate(texts)]


def parts(splits):
  return splits.calibration, splits.training, splits.held_out


def keys(docs):
  return set().union(*(paragraph_keys(doc.text) for doc in docs))


def split(docs, held_out=0.2, calibration=0.2, seed=0):
  """None where the corpus is too small or too repetitive: the error says so, and is tested below."""
  try:
    return split_documents(docs, held_out=held_out, calibration=calibration, seed=seed)
  except JaxchopError:
    return None


@given(corpora(), st.integers(0, 3))
def test_parts_share_no_document_and_no_paragraph(docs, seed):
  if splits := split(docs, seed=seed):
    names = [doc.name for part in parts(splits) for doc in part]
    assert len(names) == len(set(names))
    calibration, training, held_out = map(keys, parts(splits))
    assert not (held_out & calibration or held_out & training or calibration & training)


@given(corpora())
def test_no_paragraph_is_lost_and_every_dropped_character_is_counted(docs):
  if splits := split(docs):
    assert set().union(*map(keys, parts(splits))) == keys(docs)
    left = sum(len(doc.text) for part in parts(splits) for doc in part)
    assert left + splits.dropped == sum(len(doc.text) for doc in docs)
    originals = {doc.name: doc.text for doc in docs}
    assert all(doc.text == originals[doc.name] for doc in splits.held_out)


@given(st.data(), corpora())
def test_the_order_of_the_documents_does_not_matter(data, docs):
  assert split(data.draw(st.permutations(docs))) == split(docs)


@given(corpora())
def test_every_part_holds_a_document(docs):
  if splits := split(docs):
    assert all(parts(splits))


@given(st.integers(0, 50), st.floats(0.02, 0.4), st.floats(0.02, 0.4))
def test_shares_are_of_characters_within_one_document(seed, held_out, calibration):
  docs = [Document(f"doc:{n}", f"{n} " + "x" * (37 * n % 90)) for n in range(120)]
  total = sum(len(doc.text) for doc in docs)
  splits = split_documents(docs, held_out=held_out, calibration=calibration, seed=seed)
  for part, share in ((splits.held_out, held_out), (splits.calibration, calibration)):
    assert abs(sum(len(doc.text) for doc in part) - share * total) <= 93


def test_another_seed_gives_another_split():
  docs = [Document(f"doc:{n}", f"text {n}") for n in range(50)]
  assert split(docs, seed=0).held_out != split(docs, seed=1).held_out


def test_a_share_of_zero_leaves_its_part_empty():
  docs = [Document(f"doc:{n}", f"text {n}") for n in range(3)]
  splits = split(docs, held_out=0.0, calibration=0.0)
  assert not splits.held_out and not splits.calibration and len(splits.training) == 3


def test_equal_texts_stay_together():
  docs = [Document(f"doc:{n}", f"text {n % 5}") for n in range(20)]
  homes = [{doc.text for doc in part} for part in parts(split(docs))]
  assert sum(map(len, homes)) == 5


def test_only_the_shared_paragraphs_are_cut_and_white_space_does_not_hide_them():
  shared = "this  paragraph stands in\n   both of them"
  held = (Document("a:1", f"only here stands this one paragraph\n\n{shared}"),)
  training = (
    Document("b:1", f"  indented code\n\nSee also:\n\n{shared.replace('  ', ' ')}\n \n  the rest of the second text"),
    Document("b:2", shared),
    Document("b:3", "a text of its own,\n\n\nleft as it was \n"),
  )
  splits = without_overlap((), training, held)
  assert [doc.text for doc in splits.training] == [
    "  indented code\n\nSee also:\n\n  the rest of the second text",
    training[2].text,
  ]
  assert splits.dropped == sum(len(d.text) for d in training) - sum(len(d.text) for d in splits.training)


def test_builtin_topics_do_not_leak_into_each_other():
  splits = split_documents(documents("builtin"), held_out=0.1, calibration=0.1, seed=0)
  calibration, training, held_out = map(keys, parts(splits))
  assert not (held_out & calibration or held_out & training or calibration & training)
  # The topic on compound statements alone repeats those on for, if, try and more.
  assert splits.dropped > 5_000
  sizes = [sum(len(doc.text) for doc in part) for part in parts(splits)]
  assert sizes[1] > 300_000 and min(sizes) > 40_000


@pytest.mark.parametrize("count", [0, 1, 2])
def test_too_few_documents_are_refused(count):
  docs = [Document(f"doc:{n}", f"text {n}") for n in range(count)] + [Document("doc:9", "text 0")] * (count > 0)
  with pytest.raises(JaxchopError, match=f"holds {count} different documents, too few for 3 parts: name a"):
    split_documents(docs, held_out=0.1, calibration=0.1, seed=0)


def test_a_text_that_only_repeats_itself_is_refused():
  docs = [Document(f"doc:{n}", "\n\n".join(["the same long paragraph in all of them"] * (n + 1))) for n in range(9)]
  with pytest.raises(JaxchopError, match="every paragraph of the calibration text also stands in another part"):
    split_documents(docs, held_out=0.1, calibration=0.1, seed=0)


@pytest.mark.parametrize(("held_out", "calibration"), [(-0.1, 0.1), (0.5, 0.5), (1.0, 0.0)])
def test_impossible_shares_are_refused(held_out, calibration):
  with pytest.raises(UsageError, match="must stay below 1"):
    split_documents([], held_out=held_out, calibration=calibration, seed=0)
