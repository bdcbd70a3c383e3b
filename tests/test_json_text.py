"""JSON for people."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlvm_jax import json_text


@given(st.dictionaries(st.text(), st.text(st.characters(exclude_categories=())), max_size=3))
def test_it_reads_back_and_can_be_encoded(value):
    text = json_text.readable(value)
    assert json.loads(text.encode()) == json.loads(json.dumps(value))


def test_characters_stand_for_themselves():
    assert json_text.readable({"颜色": "🎬 \udc80"}) == '{"颜色": "🎬 \\udc80"}'


@pytest.mark.parametrize("opened", ["[", '{"a":', '[{"a":'])
@pytest.mark.parametrize("levels", [101, 900, 100_000])
def test_nesting_too_deep_is_one_error(opened, levels):
    """Whether Python's own reader refuses it, and whether what it reads could be printed, depends on its version."""
    closed = {"[": "]", '{"a":': "}", '[{"a":': "}]"}[opened]
    text = opened * levels + "0" + closed * levels
    for given_as in (text, text.encode()):
        with pytest.raises(ValueError, match="nested more than 100 levels deep"):
            json_text.loads(given_as)


def test_nesting_up_to_the_limit_is_read():
    text = "[" * 100 + "]" * 100
    assert json_text.loads(text) == json.loads(text)
    many = json.dumps([["[" * 200], *([[]] * 500)])  # brackets are many, or in strings, but not deep
    assert json_text.loads(many) == json.loads(many)
