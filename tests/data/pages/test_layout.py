"""Chunks, lines and blocks: the geometry of T2Vid's pages, with a ruler of our own."""

import dataclasses
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlvm_jax.data.pages import layout
from vlvm_jax.data.pages.layout import Sheet

WORDS = st.lists(st.text("abgjW.,", min_size=1, max_size=12))


@dataclasses.dataclass(frozen=True)
class Typewriter:
    """Every character is half as wide as the font is high; a line with a `g` is higher."""

    size: int

    def right(self, text):
        return len(text) * self.size / 2

    def advance(self, line):
        return (self.size + ("g" in line) * 2) if line else 0


SHEET = Sheet(100, 10)


def pages(text, sheet=SHEET, size=10, overflow="clip", smallest=4):
    return layout.lay_out(text, sheet, Typewriter, size, overflow, smallest)


@pytest.mark.parametrize(
    ("words", "count"),
    [(0, 0), (1, 1), (115, 1), (116, 2), (230, 2), (231, 3), (1000, 9), (6900, 60), (9775, 85), (11500, 100)],
)
def test_counts_of_chunks(words, count):
    tokens = [f"w{number}" for number in range(words)]
    found = layout.chunks(tokens, 115)
    assert len(found) == count
    assert " ".join(found) == " ".join(tokens)
    assert all(len(one.split()) == 115 for one in found[:-1])


@given(WORDS, st.integers(1, 9))
def test_chunks_hold_every_word_once_and_in_order(words, size):
    found = layout.chunks(words, size)
    assert [word for one in found for word in one.split()] == words and len(found) == -(-len(words) // size)


def test_sentences_stay_whole():
    said = ["a b c", "d e", "f g h i j k l", "m"]
    assert layout.sentence_chunks(said, 5) == ["a b c d e", "f g h i j k l", "m"]
    assert layout.sentence_chunks(said, 4) == ["a b c", "d e", "f g h i j k l", "m"]
    assert layout.sentence_chunks(said, 99) == [" ".join(said)]
    assert layout.sentence_chunks([], 5) == []


def test_parts_take_equally_many_sentences_unless_words_run_out():
    said = ["a b"] * 12
    assert layout.part_chunks(said, 99, 4) == ["a b a b a b"] * 4
    assert layout.part_chunks(said, 4, 4) == ["a b a b"] * 6
    assert layout.part_chunks(said, 99, 128) == ["a b"] * 12
    assert len(layout.part_chunks(["s"] * 256 * 3, 99, 128)) == 128


def test_a_wide_first_word_leaves_an_empty_line_and_a_later_one_none():
    wrap = lambda *words: layout.wrap(words, lambda word: len(word) + 1, 8)  # noqa: E731
    assert wrap("wwwwwwwww", "a", "b") == ["", "wwwwwwwww", "a b"]
    assert wrap("a", "wwwwwwwww", "b") == ["a", "wwwwwwwww", "b"]
    assert wrap("abc", "def", "g") == ["abc def", "g"]  # 4 + 4 fit exactly
    assert wrap() == [""]


@given(WORDS, st.integers(4, 40))
def test_lines_are_greedy(words, limit):
    width = lambda word: len(word) + 1  # noqa: E731
    lines = [line.split() for line in layout.wrap(words, width, limit)]
    assert [word for line in lines for word in line] == words
    for line, after in itertools.pairwise(lines):
        assert sum(map(width, line)) + width(after[0]) > limit
        assert sum(map(width, line)) <= limit or len(line) == 1
    assert all(lines[1:])


def test_a_block_is_centred_by_halves_or_begins_at_the_margin():
    (page,) = pages("aaaa ggg")
    assert (page.lines, page.advances, page.top) == (("aaaa ggg",), (12,), 44)
    (page,) = pages("aaa", Sheet(101, 10))
    assert page.top == 45.5 and not page.overflows
    (page,) = pages("aaa", Sheet(100, 10, "top"))
    assert page.top == 10


def test_clipped_blocks_and_wide_words_are_marked():
    (full,) = pages(" ".join(["aaaaaaaa"] * 10))
    assert len(full.lines) == 10 and full.top == 0 and not full.overflows
    (high,) = pages(" ".join(["aaaaaaaa"] * 11))
    assert high.top == -5 and high.overflows
    (low,) = pages(" ".join(["aaaaaaaa"] * 10), Sheet(100, 10, "top"))
    assert low.top == 10 and low.overflows
    (wide,) = pages("a" * 19)  # to 10 + 95 of 100
    assert wide.overflows and wide.lines == ("", "a" * 19)
    (margin,) = pages("a" * 18)  # beyond the margin, within the page
    assert not margin.overflows


def test_shrinking_takes_the_largest_font_that_fits():
    text = " ".join(["aaaaaaa"] * 22)
    assert pages(text)[0].overflows
    (page,) = pages(text, overflow="shrink")
    assert not page.overflows and page.font_size < 10
    assert pages(text, size=page.font_size + 1)[0].overflows
    (page,) = pages("a" * 80, overflow="shrink")
    assert page.font_size == 4 and page.overflows  # 10 + 160 pixels are too many all the same


@pytest.mark.parametrize("align", ["center", "top"])
def test_new_pages_carry_on_where_lines_no_longer_fit(align):
    text = " ".join(["aaaaaaa", "ggggggg"] * 30)
    sheet = Sheet(100, 10, align)
    (whole,) = pages(text, sheet)
    found = pages(text, sheet, overflow="new_page")
    assert len(found) > 2 and not any(page.overflows for page in found)
    assert [line for page in found for line in page.lines] == list(whole.lines)
    for page, after in itertools.pairwise(found):
        room = 100 if align == "center" else 90
        assert sum(page.advances) + after.advances[0] > room
    assert pages("aaa", sheet, overflow="new_page") == pages("aaa", sheet)
