"""Numbers in words, against num2words."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlvm_jax.data.numerals import in_words


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (0, "zero"),
        (13, "thirteen"),
        (20, "twenty"),
        (64, "sixty-four"),
        (100, "one hundred"),
        (119, "one hundred and nineteen"),
        (1000, "one thousand"),
        (2005, "two thousand and five"),
        (1234, "one thousand, two hundred and thirty-four"),
        (300_045, "three hundred thousand and forty-five"),
    ],
)
def test_numerals(number, words):
    assert in_words(number) == words


@given(st.integers(0, 999_999))
def test_numerals_are_those_of_num2words(number):
    assert in_words(number) == pytest.importorskip("num2words").num2words(number)
