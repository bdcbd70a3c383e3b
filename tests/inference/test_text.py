"""Text as tokens come: pieces join to the whole, whatever the pieces; stop strings within and across tokens."""

import hypothesis
import pytest
from hypothesis import strategies as st
from support import hf_checkpoints

from vlvm_jax.inference.text import AnswerText

END = 256


def decode(tokens):
    return bytes(tokens).decode("utf-8", errors="replace")


def run(data: bytes, sizes, stop=(), end=False):
    """Shows tokens, a byte each, in pieces of these sizes."""
    text = AnswerText(decode, (END,), stop)
    tokens, shown = [*data, *([END] if end else [])], []
    for size in sizes:
        shown.append(text.push(tokens[:size]))
        tokens = tokens[size:]
    shown.append(text.push(tokens))
    shown.append(text.close())
    return text, shown


@hypothesis.given(
    st.text("ab é日\n ", max_size=30),
    st.lists(st.integers(0, 7), max_size=12),
    st.lists(st.text("ab é\n", min_size=1, max_size=3), max_size=2),
    st.booleans(),
)
@hypothesis.example(" aa", [2], [" aa"], False)
@hypothesis.example("é ab", [], ["b", "ab"], False)
def test_pieces_join_to_the_text(said, sizes, stop, end):
    data = said.encode()
    text, shown = run(data, sizes, tuple(stop), end)
    ends = [(said.find(string) + len(string), said.find(string)) for string in stop if string in said]
    cut = min(ends)[1] if ends else None  # before the one that is complete first
    assert "".join(shown) == text.text == (said if cut is None else said[:cut]).strip()
    assert text.finish == ("stop" if end or cut is not None else "length")
    if cut is None:
        assert text.new_tokens == len(data) + end
    else:
        assert text.new_tokens == min(len(said[: said.find(s) + len(s)].encode()) for s in stop if s in said)


@pytest.mark.parametrize("sizes", [(), (1,) * 20, (5, 1), (7,)])
def test_a_stop_string_across_tokens(sizes):
    text, shown = run(b"the end.STOP more", sizes, ("STOP",))
    assert "".join(shown) == text.text == "the end."
    assert text.new_tokens == len("the end.STOP")


def test_what_may_become_a_stop_string_is_held_back_and_shown_when_it_does_not():
    text = AnswerText(decode, (END,), ("STOP",))
    assert text.push(b"go ST") == "go"
    assert text.push(b"ART") == " START"
    assert text.push(b" S") == ""
    assert text.close() == " S"


def test_half_a_character_is_held_back():
    text = AnswerText(decode, (END,))
    first, second = "日".encode()[:2], "日".encode()[2:]
    assert text.push(first) == "" and text.push(second) == "日"


@pytest.mark.parametrize("said", ["视频里 ماذا 🎬 é", "👩\u200d👩\u200d👧 हिन्दी", "e\u0301 \U0002070e"])
def test_a_byte_level_tokenizers_pieces_are_whole_characters(said):
    words = hf_checkpoints.byte_level()
    tokens = words.encode(said, add_special_tokens=False)
    assert len(tokens) > len(said)  # several a character
    text = AnswerText(words.decode, ())
    pieces = [text.push([token]) for token in tokens]
    assert "".join(pieces) == said and not any("\ufffd" in piece for piece in pieces)


def test_nothing_counts_after_the_end():
    text = AnswerText(decode, (END,))
    assert text.push([*b"yes", END, *b" no"]) == "yes"
    assert text.push(b" no") == "" and text.text == "yes" and text.new_tokens == 4 and text.finish == "stop"
