"""Which samples made of texts are kept: the edges of each base model."""

import pytest

from vlvm_jax.data.pages import filters
from vlvm_jax.data.pages.triplets import DOCUMENT_REQUEST
from vlvm_jax.errors import InputError


def reason(preset, pages=1, tokens=10, question="What?", answer="This.", layout="long_alpaca", **given):
    limits = filters.filters(preset, **given)
    return filters.reason(question, answer, pages, layout, limits, lambda _text: tokens)


@pytest.mark.parametrize(
    ("preset", "pages", "tokens", "cause"),
    [
        ("minicpm", 85, 32, None),
        ("minicpm", 85, 33, "too_many_tokens"),
        ("minicpm", 91, 0, "too_many_pages"),
        ("sparrow", 100, 640, None),
        ("sparrow", 100, 641, "too_many_tokens"),
        ("sparrow", 101, 0, "too_many_pages"),
        ("idefics3", 60, 100, None),
        ("idefics3", 60, 101, "too_many_tokens"),
        ("idefics3", 66, 0, "too_many_pages"),
        ("minicpm", 0, 0, "no_pages"),
        (None, 1000, 10**6, None),
    ],
)
def test_pages_and_tokens(preset, pages, tokens, cause):
    assert reason(preset, pages, tokens) == cause


def test_pieces_of_a_question():
    assert filters.question_words("What is this?") == 3
    for pieces, cause in ((29, None), (30, "long_question")):
        question = " ".join(["word"] * pieces)
        assert filters.question_words(question) == pieces
        assert reason("minicpm", question=question, layout="long_qlora") == cause
        assert reason("minicpm", question=question) is None
        assert reason("minicpm", question=question, layout="triplets") is None
    for pieces, cause in ((499, None), (500, "long_question")):
        assert reason("idefics3", question=" ".join(["word"] * pieces)) == cause


def test_the_request_for_a_document_takes_ten_pieces():
    for pieces, cause in ((19, None), (20, "long_question")):
        question = " ".join(["word"] * pieces) + f"\n{DOCUMENT_REQUEST}"
        assert filters.question_words(question) == pieces + 10
        assert reason("sparrow", question=question, layout="long_qlora") == cause


@pytest.mark.parametrize("said", [{"question": "What is <video>?"}, {"answer": "<image>"}])
def test_placeholders_within_the_text(said):
    assert reason("minicpm", **said) == "tag" == reason(None, **said)


def test_what_is_tokenised():
    seen = []
    limits = filters.filters("minicpm")
    filters.reason("Who?", "She.", 1, "triplets", limits, lambda text: seen.append(text) or 1)
    assert seen == ["<video>\nWho?\nShe."]


def test_given_values_replace_the_presets():
    assert reason("minicpm", 85, 33, max_total_tokens=9000) is None
    assert reason("minicpm", 3, max_images=2) == "too_many_pages"
    assert reason(None, question="a b c", layout="triplets", max_question_words=3) == "long_question"
    assert reason("minicpm", question="a b c", max_question_words=3) == "long_question"
    with pytest.raises(InputError, match="--preset=llava: there are minicpm, sparrow, idefics3"):
        filters.filters("llava")
    with pytest.raises(InputError, match="give --tokens_per_image"):
        filters.filters(max_total_tokens=100)
