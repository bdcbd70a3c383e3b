"""T2Vid's pages: words, widths, line breaks and blocks as released; pixels only against Pillow's own."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont, features
from support.long_texts import TEXTS

from vlvm_jax.config import build
from vlvm_jax.data.pages import draw
from vlvm_jax.data.pages.draw import FONT, PageOptions, render_pages
from vlvm_jax.errors import InputError

pytestmark = pytest.mark.skipif(not features.check("raqm"), reason="the released line breaks need libfribidi")

OPTIONS = PageOptions()
SPACED = PageOptions(chunk_tokenizer="whitespace")
SAID = """He didn't say "hello" (twice). They'll pay $3.50, i.e. 20% more... It's J. Smith's e-mail."""
TOKENS = [
    "He", "did", "n't", "say", "``", "hello", "''", "(", "twice", ")", ".", "They", "'ll", "pay", "$", "3.50", ",",
    "i.e.", "20", "%", "more", "...", "It", "'s", "J.", "Smith", "'s", "e-mail", ".",
]  # fmt: skip


def test_the_word_rule():
    assert draw.words(SAID, "nltk_no_punkt") == TOKENS and len(TOKENS) == 29
    assert draw.words("He sat. She ran.", "nltk_no_punkt") == ["He", "sat.", "She", "ran", "."]
    assert draw.words(" He  sat.\nShe\tran. ", "whitespace") == ["He", "sat.", "She", "ran."]


def test_punkt_parts_sentences_first(tmp_path, monkeypatch):
    """With data that NLTK's own trainer makes, for the published data is a download."""
    import nltk
    from nltk.tokenize import punkt

    draw._punkt.cache_clear()
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    with pytest.raises(InputError, match=r"python -m nltk\.downloader punkt_tab, or take 'nltk_no_punkt'"):
        draw.words(SAID, "nltk")
    folder = tmp_path / "tokenizers" / "punkt_tab" / "english"
    folder.mkdir(parents=True)
    trainer = punkt.PunktTrainer(" ".join(TEXTS.values()))
    punkt.save_punkt_params(trainer.get_params(), str(folder))
    assert draw.words("He sat. She ran.", "nltk") == ["He", "sat", ".", "She", "ran", "."]
    found, without = (draw.words(TEXTS["genesis"], name) for name in ("nltk", "nltk_no_punkt"))
    assert len(found) > len(without) and found.count(".") > 30
    assert found == nltk.word_tokenize(TEXTS["genesis"])
    draw._punkt.cache_clear()


def test_widths_of_words_with_their_space():
    ruler = draw.font(OPTIONS)
    wide = {"the": 33, "quick": 52, "brown": 60, "word": 49, "hyphen": 71, ".": 11, "a": 17, "W": 24}
    assert {word: ruler.right(f"{word} ") for word in wide} == wide


FOX = " ".join(("the quick brown fox jumps over the lazy dog . " * 12).split()[:115])


@pytest.mark.parametrize(
    ("text", "words_of_lines", "advances", "total", "top"),
    [
        ("word " * 115, [8] * 14 + [3], {19}, 285, 81.5),
        (FOX, [10] * 11 + [5], {23}, 276, 86),
        ("aceo " * 10, [8, 2], {19}, 38, 205),
        ("W" * 40 + " a b", [0, 1, 2], {0, 19}, 38, 205),
        ("internationalization " * 115, [2] * 57 + [1], {19}, 1102, -327),
    ],
    ids=["words", "fox", "aceo", "wide", "clipped"],
)  # fmt: skip
def test_golden_pages(text, words_of_lines, advances, total, top):
    (page,) = draw.lay_out(text, SPACED)
    assert [len(line.split()) for line in page.lines] == words_of_lines
    assert (set(page.advances), sum(page.advances), page.top) == (advances, total, top)
    assert page.overflows == (top < 0 or "W" in text)


def reference(chunk):
    """Lines, advances and top of a chunk, written down from the spec's formulas alone."""
    face = ImageFont.truetype(str(FONT), 20, layout_engine=ImageFont.Layout.RAQM)
    lines, line, width = [], "", 0
    for word in chunk.split():
        wide = face.getbbox(word + " ")[2]
        if width + wide <= 448 - 2 * 20:
            line, width = line + word + " ", width + wide
        else:
            lines.append(line)
            line, width = word + " ", wide
    lines.append(line)
    advances = [face.getbbox(line)[3] for line in lines]
    return [line.strip() for line in lines], advances, (448 - sum(advances)) / 2


@pytest.mark.parametrize("tokenizer", ["nltk_no_punkt", "whitespace"])
@pytest.mark.parametrize("name", TEXTS)
def test_long_texts_break_as_the_formulas_say(name, tokenizer):
    options = PageOptions(chunk_tokenizer=tokenizer)
    pages, chunks = draw.lay_out(TEXTS[name], options), draw.chunk(TEXTS[name], options)
    assert len(pages) == len(chunks) == -(-len(draw.words(TEXTS[name], tokenizer)) // 115) >= 5
    for page, chunk in zip(pages, chunks, strict=True):
        assert (list(page.lines), list(page.advances), page.top) == reference(chunk)
        assert set(page.advances) <= {19, 22, 23, 24} and not page.overflows


def test_goldens_over_long_texts():
    """Of the embedded font; the first lines are there to be read."""
    genesis, sonnets = (draw.lay_out(TEXTS[name], OPTIONS) for name in ("genesis", "sonnets"))
    assert genesis[0].lines[:2] == (
        "In the beginning God created the heaven and",
        "the earth. And the earth was without form ,",
    )
    assert sonnets[0].lines[:2] == (
        "Shall I compare thee to a summer 's day ?",
        "Thou art more lovely and more temperate :",
    )
    assert [len(page.lines) for page in genesis] == [13, 14, 12, 12, 14, 12, 12, 9]
    assert [sum(page.advances) for page in genesis] == [292, 301, 275, 268, 316, 262, 262, 207]
    assert [sum(page.advances) for page in sonnets] == [298, 298, 299, 292, 291, 228]
    assert [page.top for page in sonnets] == [75, 75, 74.5, 78, 78.5, 110]


def test_pixels_are_those_of_black_on_white(tmp_path):
    """As released: an RGB canvas, every line at (20, y), y from the block's top on."""
    rendered = render_pages(TEXTS["sonnets"], OPTIONS)
    face = ImageFont.truetype(str(FONT), 20, layout_engine=ImageFont.Layout.RAQM)
    for pixels, chunk in zip(rendered.pages, draw.chunk(TEXTS["sonnets"], OPTIONS), strict=True):
        image = Image.new("RGB", (448, 448), "white")
        lines, advances, y = reference(chunk)
        for line, advance in zip(lines, advances, strict=True):
            ImageDraw.Draw(image).text((20, y), line, font=face, fill="black")
            y += advance
        assert np.array_equal(pixels, np.asarray(image))
    assert rendered.pages.dtype == np.uint8 and rendered.pages.shape[1:] == (448, 448, 3)
    files = draw.PageFiles(TEXTS["sonnets"], OPTIONS)
    (tmp_path / "p.png").write_bytes(files[2])
    with Image.open(tmp_path / "p.png") as image:
        assert np.array_equal(np.asarray(image.convert("RGB")), rendered.pages[2])


def test_the_same_text_gives_the_same_pages():
    first, second = (render_pages(TEXTS["genesis"], OPTIONS) for _ in range(2))
    assert np.array_equal(first.pages, second.pages)
    assert list(draw.PageFiles(TEXTS["genesis"], OPTIONS)) == list(draw.PageFiles(TEXTS["genesis"], OPTIONS))
    assert len(render_pages("", OPTIONS).pages) == 0 and render_pages(" \n", OPTIONS).pages.shape == (0, 448, 448, 3)


def test_overflow_is_counted_and_dealt_with():
    text = "internationalization " * 230 + "word " * 115
    assert render_pages(text, SPACED).overflowed == 2
    shrunk = draw.lay_out(text, SPACED.model_copy(update={"overflow": "shrink"}))
    assert [page.font_size < 20 for page in shrunk] == [True, True, False] and not any(p.overflows for p in shrunk)
    more = render_pages(text, SPACED.model_copy(update={"overflow": "new_page"}))
    assert len(more.pages) == 3 + 3 + 1 and more.overflowed == 0
    cut = render_pages("W" * 40, SPACED)
    assert cut.overflowed == 1 and cut.pages[0, :, -1].min() == 0  # black up to the edge


def test_other_options():
    (top,) = draw.lay_out("word", SPACED.model_copy(update={"vertical_align": "top"}))
    assert top.top == 20
    (metric,) = draw.lay_out("aceo " * 10, SPACED.model_copy(update={"line_advance": "font_metrics"}))
    assert set(metric.advances) == {float(sum(draw.font(SPACED).face.getmetrics()))}
    whole = SPACED.model_copy(update={"chunk_mode": "sentence", "chunk_size": 40})
    assert all(one.endswith((".", "'s.")) for one in draw.chunk(TEXTS["genesis"], whole))
    parts = SPACED.model_copy(update={"chunk_mode": "n_parts", "parts": 6, "chunk_size": 999})
    assert 5 <= len(draw.chunk(TEXTS["genesis"], parts)) <= 7
    assert draw.sentences('He said "No." She left.', "whitespace") == ['He said "No."', "She left."]
    small = render_pages("a word or two", PageOptions(page_size=64, font_size=10, margin=4, chunk_size=2))
    assert small.pages.shape == (2, 64, 64, 3) and small.pages.min() < 64
    basic = draw.font(PageOptions(layout_engine="basic"))
    assert (basic.right("the "), basic.right("quick ")) == (34, 52)


def test_scripts_beyond_latin():
    """The embedded font has Greek and Cyrillic; of what it lacks the message says so."""
    greek = "Μῆνιν ἄειδε θεὰ Πηληϊάδεω Ἀχιλῆος"
    russian = "Все счастливые семьи похожи друг на друга"  # noqa: RUF001
    for text in (greek, russian):
        assert not draw.missing_glyphs(text, SPACED) and render_pages(text, SPACED).pages.min() == 0
    with pytest.raises(draw.MissingGlyphs) as caught:
        render_pages("永遠に女性的なるもの", SPACED)
    said = str(caught.value)
    assert said.startswith(
        "font LiberationSans-Regular.ttf lacks 10 of the text's characters, 10 times: 永 (U+6C38) 遠 "
    )
    assert said.endswith("give font=PATH of one that has them") and "\n" not in said
    few = "word " * 400 + "永"
    assert draw.check_glyphs(few, SPACED) == 1 and len(render_pages(few, SPACED).pages) == 4
    with pytest.raises(draw.MissingGlyphs):
        render_pages(few, SPACED.model_copy(update={"max_missing_glyphs": 0.0}))


def test_another_font(tmp_path):
    import matplotlib

    dejavu = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    options = SPACED.model_copy(update={"font": str(dejavu)})
    armenian = "Բոլոր մարդիկ ծնվում են ազատ"
    with pytest.raises(draw.MissingGlyphs, match=r"LiberationSans-Regular\.ttf lacks"):
        render_pages(armenian, SPACED)
    assert render_pages(armenian, options).pages.min() == 0
    assert draw.font(options).right("the ") != draw.font(SPACED).right("the ")
    (tmp_path / "no.ttf").write_bytes(b"no font")
    for name in ("no.ttf", "gone.ttf"):
        with pytest.raises(InputError, match=rf"^font {tmp_path}/{name}: .*; give a TrueType or OpenType file$"):
            render_pages("word", SPACED.model_copy(update={"font": str(tmp_path / name)}))


def test_faults_are_told(monkeypatch):
    for values, said in (
        ({"chunk_size": 0}, "pages.chunk_size: "),
        ({"overflow": "hide"}, "pages.overflow: "),
        ({"margin": 220}, "margin 220 leaves 8 of 448 pixels for text"),
        ({"fontsize": 3}, "pages.fontsize: unknown key; did you mean 'font_size'?"),
    ):
        with pytest.raises(InputError) as caught:
            build(PageOptions, values, "pages")
        assert said in str(caught.value)
    draw._font.cache_clear()
    monkeypatch.setattr(features, "check", lambda _name: False)
    with pytest.raises(InputError, match="layout_engine 'raqm': Pillow finds no Raqm here; install libfribidi"):
        render_pages("word", SPACED)
    assert len(render_pages("word", SPACED.model_copy(update={"layout_engine": "basic"})).pages) == 1


def test_the_font_is_whole_and_licensed():
    found = draw.provenance(OPTIONS)
    assert found["font_sha256"] == "8d91388f1d3604b3b8ae0e3ee2d140e50cd6122f9214514f4aca772540a4076d"
    assert {"pillow", "freetype", "raqm", "nltk"} <= found.keys()
    assert "SIL OPEN FONT LICENSE Version 1.1" in (FONT.parent / "LICENSE.txt").read_text()
