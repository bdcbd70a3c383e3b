"""Where the words of a long text go on pages: chunks, lines, line advances, the block's place. Geometry alone.

The rules are those of T2Vid's released renderer (docs/t2vid.md): a chunk of words is one page; a
line takes words as long as their widths, each with a space after it, fit; a line is as high as its own ink below the
ascender line, so that lines without descenders are closer; the block of lines is centred. Nothing keeps it from being
higher than the page: what to do then is `Overflow`, of which `clip` is the released behaviour and the others are ours.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Literal, Protocol

Overflow = Literal["clip", "shrink", "new_page"]
VerticalAlign = Literal["center", "top"]


class Ruler(Protocol):
    """What a font of one size says of a text, in pixels."""

    size: int

    def right(self, text: str) -> float:
        """Right end of the text's box, drawn from 0 on."""
        ...

    def advance(self, line: str) -> float:
        """How far below a line the next one begins."""
        ...


@dataclasses.dataclass(frozen=True)
class Sheet:
    """A page's measures, in pixels.

    Attributes:
      size: of the square page.
      margin: to the left and the right of the text, and above it where the text begins at the top.
    """

    size: int
    margin: int
    align: VerticalAlign = "center"

    @property
    def width(self) -> int:
        """Of a line at most."""
        return self.size - 2 * self.margin


@dataclasses.dataclass(frozen=True)
class Page:
    """The lines of one page.

    Attributes:
      advances: of each line.
      top: y of the first line's ascender line; negative of a block that is higher than the page and centred.
      font_size: in pixels.
      overflows: whether text leaves the page at any side.
    """

    lines: tuple[str, ...]
    advances: tuple[float, ...]
    top: float
    font_size: int
    overflows: bool


def chunks(words: Sequence[str], size: int) -> list[str]:
    """Equal parts of `size` words, joined by spaces; the last may be shorter, and of no words there is none."""
    return [" ".join(words[start : start + size]) for start in range(0, len(words), size)]


def sentence_chunks(sentences: Sequence[str], size: int) -> list[str]:
    """Whole sentences, as many as `size` words allow; a longer one stands alone. Words are what spaces part."""
    return _gathered(sentences, size, len(sentences))


def part_chunks(sentences: Sequence[str], size: int, parts: int) -> list[str]:
    """About `parts` chunks of equally many sentences: fewer sentences where `size` words are reached before.

    Of fewer sentences than half of `parts` each is a chunk.
    """
    return _gathered(sentences, size, max(1, round(len(sentences) / parts)))


def _gathered(sentences: Sequence[str], size: int, most: int) -> list[str]:
    groups: list[str] = []
    held, words = [], 0
    for sentence in sentences:
        count = len(sentence.split())
        if held and (words + count > size or len(held) >= most):
            groups.append(" ".join(held))
            held, words = [], 0
        held.append(sentence)
        words += count
    return [*groups, " ".join(held)] if held else groups


def wrap(words: Sequence[str], width_of: Callable[[str], float], limit: float) -> list[str]:
    """Lines, greedily. A word wider than the limit sticks out; as the first of all it leaves an empty line before it.

    Args:
      width_of: of a word with the space after it; a line's width is the sum of these.
    """
    lines: list[list[str]] = [[]]
    width = 0.0
    for word in words:
        wide = width_of(word)
        if width + wide <= limit:
            lines[-1].append(word)
            width += wide
        else:
            lines.append([word])
            width = wide
    return [" ".join(line) for line in lines]


def lay_out(
    text: str, sheet: Sheet, ruler_of: Callable[[int], Ruler], size: int, overflow: Overflow, smallest: int
) -> list[Page]:
    """The pages of one chunk: one, unless `new_page` has to take more.

    `shrink` takes the largest font of which nothing leaves the page, none below `smallest`; `new_page` carries lines
    that do not fit below over to further pages. What sticks out all the same is marked.

    Args:
      ruler_of: of a font size.
      size: of the font.
    """
    page = _page(_lines(text, sheet, ruler_of(size)), sheet, ruler_of(size))
    if not page.overflows or overflow == "clip":
        return [page]
    if overflow == "new_page":
        return [_page(lines, sheet, ruler_of(size)) for lines in _carried(page, sheet)]
    while page.overflows and size > smallest:
        size -= 1
        page = _page(_lines(text, sheet, ruler_of(size)), sheet, ruler_of(size))
    return [page]


def _lines(text: str, sheet: Sheet, ruler: Ruler) -> list[str]:
    return wrap(text.split(), lambda word: ruler.right(f"{word} "), sheet.width)


def _page(lines: Sequence[str], sheet: Sheet, ruler: Ruler) -> Page:
    advances = tuple(ruler.advance(line) for line in lines)
    height = sum(advances)
    top = (sheet.size - height) / 2 if sheet.align == "center" else float(sheet.margin)
    # A line's own right end, not the sum of its words' by which it was wrapped.
    sticks_out = any(sheet.margin + ruler.right(line) > sheet.size for line in lines)
    overflows = sticks_out or top < 0 or top + height > sheet.size
    return Page(tuple(lines), advances, top, ruler.size, overflows)


def _carried(page: Page, sheet: Sheet) -> list[list[str]]:
    """The lines of a page, in parts that fit below one another."""
    room = sheet.size if sheet.align == "center" else sheet.size - sheet.margin
    parts: list[list[str]] = [[]]
    height = 0.0
    for line, advance in zip(page.lines, page.advances, strict=True):
        if parts[-1] and height + advance > room:
            parts.append([])
            height = 0.0
        parts[-1].append(line)
        height += advance
    return parts
