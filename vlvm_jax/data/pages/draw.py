"""A long text as page images, after T2Vid: words to chunks, a chunk to a page (docs/t2vid.md).

Chunk size, page, font size and margin are the paper's; the words, wrapping, line advances and centring are those of its
released code. The font there is Arial, which may not be passed on; here it is Liberation Sans, whose widths are Arial's
(OFL 1.1, `fonts/LICENSE.txt`). Pages are drawn in grey, which gives the pixels that black on RGB white has.
"""

import dataclasses
import functools
import hashlib
import io
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from fontTools.ttLib import TTFont, TTLibError
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont, features
from pydantic import Field, PositiveInt, model_validator

from vlvm_jax.config import Settings
from vlvm_jax.data.extras import need
from vlvm_jax.data.pages import layout as page_layout
from vlvm_jax.data.pages.layout import Page, Sheet
from vlvm_jax.errors import InputError, brief

FONT = Path(__file__).parent / "fonts" / "LiberationSans-Regular.ttf"
SMALLEST = 6  # pixels, to which `shrink` goes; below nothing can be read
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|(?<=[.!?][\"')\]])\s+")
_WHY = "parts words for pages (or take chunk_tokenizer 'whitespace')"


class MissingGlyphs(InputError):
    """A text that a font cannot show."""


class PageOptions(Settings):
    """How a text becomes pages; the defaults are as released, but for the font and `nltk_no_punkt`.

    `chunk_tokenizer` says what a word is: `nltk` is NLTK's `word_tokenize`, as released, and needs its Punkt data;
    `nltk_no_punkt` is the same word rule on the whole text, which needs no data and leaves full stops within the text
    at their words; `whitespace` is what spaces part. `chunk_mode` `sentence` keeps sentences whole, `n_parts` aims at
    `parts` chunks of a text; both count `chunk_size` in words between spaces.

    `font` is a path, by default the embedded Liberation Sans; `layout_engine` is Pillow's: `raqm` as released, which
    needs libfribidi and shapes scripts such as Arabic and Devanagari, or `basic`, whose widths are rounded to pixels.
    `line_advance` is from line to line the line's own ink, as released, or the font's height.

    A text of whose characters more than `max_missing_glyphs` are not in the font is refused.
    """

    chunk_size: PositiveInt = 115
    chunk_mode: Literal["fixed", "sentence", "n_parts"] = "fixed"
    chunk_tokenizer: Literal["nltk", "nltk_no_punkt", "whitespace"] = "nltk_no_punkt"
    parts: PositiveInt = 128
    page_size: PositiveInt = 448
    font: str | None = None
    font_size: int = Field(default=20, ge=SMALLEST)
    margin: int = Field(default=20, ge=0)
    vertical_align: page_layout.VerticalAlign = "center"
    line_advance: Literal["line_bbox", "font_metrics"] = "line_bbox"
    overflow: page_layout.Overflow = "clip"
    layout_engine: Literal["raqm", "basic"] = "raqm"
    max_missing_glyphs: float = Field(default=0.01, ge=0, le=1)

    @model_validator(mode="after")
    def _check(self):
        if self.sheet.width < self.font_size:
            raise ValueError(f"margin {self.margin} leaves {self.sheet.width} of {self.page_size} pixels for text")
        return self

    @property
    def font_path(self) -> str:
        return str(FONT) if self.font is None else str(Path(self.font).expanduser())

    @property
    def sheet(self) -> Sheet:
        return Sheet(self.page_size, self.margin, self.vertical_align)


@dataclasses.dataclass(frozen=True)
class Rendered:
    """The pages of a text.

    Attributes:
      pages: black on white.
      overflowed: how many of them text leaves, and is cut off.
    """

    pages: UInt8[np.ndarray, "P H W 3"]
    overflowed: int


def render_pages(context: str, options: PageOptions) -> Rendered:
    """The pages of a text in order, none of an empty one.

    Raises:
      InputError: the font cannot be read or lacks the text's characters; an extra is missing.
    """
    pages = lay_out(context, options)
    size = options.page_size
    pixels = [np.zeros((0, size, size, 3), np.uint8)]
    pixels += [np.asarray(draw(page, options).convert("RGB"))[None] for page in pages]
    return Rendered(np.concatenate(pixels), sum(page.overflows for page in pages))


# --- words -------------------------------------------------------------------------------------------------------


def chunk(context: str, options: PageOptions) -> list[str]:
    """The texts of a text's pages, before any overflow is dealt with.

    Raises:
      InputError: NLTK or its data is not installed.
    """
    if options.chunk_mode == "fixed":
        return page_layout.chunks(words(context, options.chunk_tokenizer), options.chunk_size)
    sentence_texts = sentences(context, options.chunk_tokenizer)
    if options.chunk_mode == "sentence":
        return page_layout.sentence_chunks(sentence_texts, options.chunk_size)
    return page_layout.part_chunks(sentence_texts, options.chunk_size, options.parts)


def words(text: str, tokenizer: str) -> list[str]:
    """The words of a text by `PageOptions.chunk_tokenizer`; punctuation counts as words by NLTK's."""
    if tokenizer == "whitespace":
        return text.split()
    if tokenizer == "nltk_no_punkt":
        return _word_rule()(text)
    return [word for sentence in sentences(text, tokenizer) for word in _word_rule()(sentence)]


def sentences(text: str, tokenizer: str) -> list[str]:
    """By Punkt's English model where the tokenizer is `nltk`; else what `.`, `!` or `?` and a space end (ours)."""
    if tokenizer == "nltk":
        return _punkt()(text)
    return [sentence for sentence in _SENTENCE_END.split(text.strip()) if sentence]


@functools.cache
def _word_rule() -> Callable[[str], list[str]]:
    return need("nltk.tokenize", "text", _WHY).NLTKWordTokenizer().tokenize


@functools.cache
def _punkt() -> Callable[[str], list[str]]:
    tokenize = need("nltk.tokenize", "text", _WHY)
    try:
        return tokenize.PunktTokenizer("english").tokenize
    except LookupError:
        raise InputError(
            "chunk_tokenizer 'nltk' needs NLTK's Punkt data; run: python -m nltk.downloader punkt_tab, or take "
            "'nltk_no_punkt', which needs none"
        ) from None


# --- fonts -------------------------------------------------------------------------------------------------------


class Font:
    """A font of one size, as a `layout.Ruler`. Words are measured once."""

    def __init__(self, path: str, size: int, engine: str, line_advance: str):
        self.size, self._line_advance = size, line_advance
        if engine == "raqm" and not features.check("raqm"):
            raise InputError(
                "layout_engine 'raqm': Pillow finds no Raqm here; install libfribidi (Debian: apt-get install "
                "libfribidi0), or take 'basic', whose line breaks differ a little"
            )
        layout = ImageFont.Layout.RAQM if engine == "raqm" else ImageFont.Layout.BASIC
        try:
            self.face = ImageFont.truetype(path, size, layout_engine=layout)
        except OSError as error:
            raise InputError(f"font {path}: {brief(error)}; give a TrueType or OpenType file") from None
        self._right = functools.lru_cache(maxsize=2**16)(lambda text: float(self.face.getbbox(text)[2]))

    def right(self, text: str) -> float:
        return self._right(text)

    def advance(self, line: str) -> float:
        if self._line_advance == "font_metrics":
            return float(sum(self.face.getmetrics()))
        return float(self.face.getbbox(line)[3])


@functools.lru_cache(maxsize=64)
def _font(path: str, size: int, engine: str, line_advance: str) -> Font:
    return Font(path, size, engine, line_advance)


def font(options: PageOptions, size: int | None = None) -> Font:
    """The font of the options, or the same of another size.

    Raises:
      InputError: there is no such font, or Pillow cannot lay out with the engine asked for.
    """
    size = options.font_size if size is None else size
    return _font(options.font_path, size, options.layout_engine, options.line_advance)


@functools.lru_cache(maxsize=8)
def _characters(path: str) -> frozenset[int]:
    try:
        with TTFont(path, lazy=True, fontNumber=0) as file:
            return frozenset(file.getBestCmap() or ())
    except (OSError, TTLibError) as error:
        raise InputError(f"font {path}: {brief(error)}; give a TrueType or OpenType file") from None


def missing_glyphs(text: str, options: PageOptions) -> Counter[str]:
    """How often a text has each character that the font lacks."""
    known = _characters(options.font_path)
    counts = Counter(text)
    return Counter({one: count for one, count in counts.items() if not one.isspace() and ord(one) not in known})


def check_glyphs(text: str, options: PageOptions) -> int:
    """Number of a text's characters that the font lacks and that will be drawn as boxes.

    Raises:
      MissingGlyphs: there are more of them than the options allow.
    """
    missing = missing_glyphs(text, options)
    lacking = missing.total()
    if lacking > options.max_missing_glyphs * max(1, len("".join(text.split()))):
        shown = " ".join(f"{one} (U+{ord(one):04X})" for one, _ in missing.most_common(3))
        raise MissingGlyphs(
            f"font {Path(options.font_path).name} lacks {len(missing)} of the text's characters, {lacking} times: "
            f"{shown}; give font=PATH of one that has them"
        )
    return lacking


def provenance(options: PageOptions) -> dict[str, Any]:
    """What decides the pages' pixels beside the options: the font and the versions of what lays out and draws."""
    versions = {
        "font": Path(options.font_path).name,
        "font_sha256": hashlib.sha256(Path(options.font_path).read_bytes()).hexdigest(),
        "pillow": features.version("pil"),
        "freetype": features.version("freetype2"),
    }
    if options.layout_engine == "raqm":
        versions |= {"raqm": features.version("raqm"), "harfbuzz": features.version("harfbuzz")}
    if options.chunk_tokenizer != "whitespace":
        versions["nltk"] = need("nltk", "text", _WHY).__version__
    return versions


# --- pages -------------------------------------------------------------------------------------------------------


def lay_out(context: str, options: PageOptions) -> list[Page]:
    """The pages of a text, not drawn.

    Raises:
      InputError: as `render_pages`.
    """
    font(options)  # a font that cannot be read is told before its characters are
    check_glyphs(context, options)
    ruler_of = functools.partial(font, options)
    return [
        page
        for text in chunk(context, options)
        for page in page_layout.lay_out(text, options.sheet, ruler_of, options.font_size, options.overflow, SMALLEST)
    ]


def draw(page: Page, options: PageOptions) -> Image.Image:
    """A page in grey."""
    image = Image.new("L", (options.page_size, options.page_size), 255)
    canvas, face = ImageDraw.Draw(image), font(options, page.font_size).face
    y = page.top
    for line, advance in zip(page.lines, page.advances, strict=True):
        canvas.text((options.margin, y), line, fill=0, font=face)
        y += advance
    return image


def png(page: Page, options: PageOptions) -> bytes:
    """A page as a PNG file."""
    file = io.BytesIO()
    draw(page, options).save(file, "PNG")
    return file.getvalue()


class PageFiles(Sequence[bytes]):
    """The pages of a text as PNG files, each drawn when it is asked for."""

    def __init__(self, context: str, options: PageOptions):
        self.pages, self.options = lay_out(context, options), options

    @property
    def overflowed(self) -> int:
        """How many pages text leaves."""
        return sum(page.overflows for page in self.pages)

    def __len__(self) -> int:
        return len(self.pages)

    def __getitem__(self, index: int) -> bytes:
        return png(self.pages[index], self.options)
