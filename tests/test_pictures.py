"""Texts in pictures: scripts with and without fonts, formulas, length."""

import io
import warnings

import matplotlib
import numpy as np
import pytest
from matplotlib import font_manager
from matplotlib.figure import Figure
from PIL import Image

from vlvm_jax import pictures
from vlvm_jax.pictures import PictureText

CHINESE, ARABIC, EMOJI = "视频里发生了什么", "ماذا يحدث", "🎬"


@pytest.fixture
def bundled(monkeypatch):
    """A system with the fonts that come with matplotlib and no others."""
    folder = matplotlib.get_data_path()
    fonts = [font for font in font_manager.fontManager.ttflist if font.fname.startswith(folder)]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", fonts)
    pictures._more_fonts.cache_clear()
    yield
    pictures._more_fonts.cache_clear()


def draw(text, *, most=120, bbox=None):
    """A picture with one text for its title, and what was noted."""
    written = PictureText([text])
    png = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # as of glyphs that are missing
        with written.fonts():
            figure = Figure(figsize=(6, 1))
            figure.suptitle(written(text, most), fontsize=9)
            figure.savefig(png, format="png", dpi=100, bbox_inches=bbox)
    return np.asarray(Image.open(png).convert("L")), written.note


@pytest.mark.parametrize(
    "text", [CHINESE, ARABIC, EMOJI, "👩\u200d👧 \u2764\ufe0f", "한국어", "हिन्दी", "\ue000", "a\x07b"]
)
def test_every_script_is_drawn_without_a_warning(bundled, text):
    pixels, note = draw(text)
    assert pixels.min() < 128
    missing = PictureText([text]).missing
    assert bool(note) == bool(missing) and all(char in text for char in missing)


def test_what_no_font_has_is_written_as_code_points_with_one_note(bundled):
    written = PictureText([CHINESE, f"so {CHINESE} $5 {EMOJI}"])
    shown = written(f"so {CHINESE[:2]} {EMOJI}")
    assert shown == "so \\u89c6\\u9891 " + ("\\U0001f3ac" if EMOJI in written.missing else EMOJI)
    assert written.note.count("\n") == 0 and written.note.startswith(
        f"{len(written.missing)} characters of the texts ("
    )


def test_fonts_of_the_system_are_used(bundled, monkeypatch):
    """Only as many as are needed, in addition to matplotlib's own."""
    monkeypatch.setattr(pictures, "_in_font", lambda path, chars: {c for c in chars if c.isascii() or "han" in path})
    han, other = (font_manager.FontEntry(fname=f"{name}.ttf", name=name.title()) for name in ("han", "other"))
    monkeypatch.setattr(font_manager.fontManager, "ttflist", [other, han])
    written = PictureText([CHINESE])
    assert written.families[1:] == ("Han",) and not written.missing and not written.note
    assert written(CHINESE) == CHINESE


def test_right_to_left_scripts_are_not_written_backwards(bundled, monkeypatch):
    monkeypatch.setattr(pictures, "_shapes", lambda: True)
    assert PictureText([ARABIC])(ARABIC) == ARABIC
    monkeypatch.setattr(pictures, "_shapes", lambda: False)
    assert PictureText([ARABIC])("ما x") == "\\u0645\\u0627 x"


@pytest.mark.parametrize("char", ["x", "视", "م", "🎬", "$", "\n"])
def test_a_long_text_is_cut(bundled, char):
    pixels, _ = draw(char * 10_000 + "x", bbox="tight")
    assert pixels.shape[1] < 1600 and pixels.shape[0] < 200
    text = PictureText([char])(char * 10_000 + "x")
    assert text == "x" if char == "\n" else (text.endswith("…") and len(text.replace("\\$", "$")) <= 120)


def test_dollars_are_no_formula(bundled):
    assert draw("costs $5 or $6_{a}^")[0].shape == draw("costs 5 or 6")[0].shape
    assert draw("$\\frac$ and $x$")[0].min() < 128


def test_line_ends_and_tabs_are_spaces():
    assert PictureText([])("what\n is\tit ?") == "what is it ?"
