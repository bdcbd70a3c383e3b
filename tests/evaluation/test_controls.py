"""Which question stands for which."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlvm_jax.errors import InputError
from vlvm_jax.evaluation import controls
from vlvm_jax.evaluation.questions import Question


def question(name, text, clip, kind="all"):
    return Question(str(name), f"list: record {name}", (("video", f"{clip}.mp4"),), text, "x", type=kind)


@given(
    st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from("12"), st.sampled_from("xy")), min_size=2, max_size=20),
    st.integers(0, 3),
)
def test_another_question_has_other_words_and_if_possible_its_type(drawn, seed):
    asked = [question(i, text, clip, kind) for i, (text, clip, kind) in enumerate(drawn)]
    if len({q.text for q in asked}) < 2:
        with pytest.raises(InputError, match="list: record 0: all questions have the same words"):
            controls.others(asked, seed)
        return
    found = controls.others(asked, seed)
    assert list(found) == [q.id for q in asked]
    assert found == controls.others(asked, seed)
    for q in asked:
        other = found[q.id]
        assert other.text != q.text
        fitting = [o for o in asked if o.text != q.text and o.type == q.type]
        assert (other.type == q.type) == bool(fitting)
        if any(o.media != q.media for o in fitting):
            assert other.media != q.media


def test_the_seed_matters():
    asked = [question(i, f"q{i}", i) for i in range(20)]
    assert controls.others(asked, 0) != controls.others(asked, 1)
