"""JSON for people."""

import json

from hypothesis import given
from hypothesis import strategies as st

from vlvm_jax import json_text


@given(st.dictionaries(st.text(), st.text(st.characters(exclude_categories=())), max_size=3))
def test_it_reads_back_and_can_be_encoded(value):
    text = json_text.readable(value)
    assert json.loads(text.encode()) == json.loads(json.dumps(value))


def test_characters_stand_for_themselves():
    assert json_text.readable({"颜色": "🎬 \udc80"}) == '{"颜色": "🎬 \\udc80"}'
