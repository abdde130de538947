"""Numbers in words are short, keep their magnitude and never fail."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxchop import wording

EVERY_FLOAT = st.floats(allow_nan=True, allow_infinity=True)


def plain(text: str) -> str:
  return text.replace("\u00a0", " ").replace("\u2212", "-")


@pytest.mark.parametrize(
  ("words", "said"),
  [
    (wording.count(30), "30"),
    (wording.count(61_440), "61,440"),
    (wording.count(123_456), "123.5 k"),
    (wording.count(134_515_008), "134.5 M"),
    (wording.count(6_738_415_616), "6.738 B"),
    (wording.size(269_060_552), "269 MB"),
    (wording.size(13_476_839_424), "13.5 GB"),
    (wording.size(12), "12 bytes"),
    (wording.number(12.306), "12.31"),
    (wording.number(549.04), "549.0"),
    (wording.number(11_053.2), "11,053"),
    (wording.number(math.inf), "∞"),
    (wording.number(math.nan), "not a number"),
    (wording.bits(1.0334), "1.033"),
    (wording.ratio(28.7, 23.6), "1.22×"),
    (wording.ratio(1.0, 0.0), ""),
    (wording.change(113_276_736, 134_515_008), "-15.8 %"),
    (wording.change(5, 5), ""),
    (wording.percent(0.834), "83 %"),
    (wording.percent(-0.12), "-12 %"),
    (wording.duration(0.41), "0.4 s"),
    (wording.duration(263), "4 min 23 s"),
    (wording.duration(7261), "2 h 1 min"),
    (wording.mark(0) + wording.mark(11), "¹¹²"),
    (wording.model_name("/home/someone/models/tiny/"), "tiny"),
    (wording.model_name("C:\\models\\tiny"), "tiny"),
    (wording.model_name("org/name"), "org/name"),
    (wording.model_name("/"), "/"),
  ],
)
def test_words(words, said):
  assert plain(words) == said


@given(EVERY_FLOAT, EVERY_FLOAT)
def test_no_number_is_too_odd_to_say(value, base):
  for words in (wording.number(value), wording.bits(value), wording.percent(value), wording.duration(value)):
    assert words
  assert isinstance(wording.ratio(value, base) + wording.change(value, base), str)


@given(st.integers(100_000, 10**15))
def test_a_count_in_words_is_off_by_less_than_a_thousandth(number):
  value, unit = plain(wording.count(number)).split()
  assert float(value.replace(",", "")) * {"k": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}[unit] == pytest.approx(
    number, rel=1e-3
  )
