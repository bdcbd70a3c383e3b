"""Draws users' texts with matplotlib, in any script and of any length."""

import dataclasses
import functools
import unicodedata
from collections.abc import Iterable, Iterator, Set
from contextlib import contextmanager

import matplotlib
import numpy as np
from matplotlib import font_manager

_ELLIPSIS = "\u2026"
_SHAPES = (3, 11)  # the first matplotlib that shapes text and writes from right to left
_NO_FONTS = ("last resort", "stix", "cmr", "cmb", "cms", "cmm", "cmt", "cme")  # boxes instead of glyphs, formulas


class PictureText:
    """Prepares texts that are drawn in a picture.

    The first font is matplotlib's own; characters that it lacks come from as few of the system's fonts as possible.
    Characters that no font has are written as code points, `\\u4e2d`. So are right-to-left scripts before matplotlib
    3.11, which would write them backwards.

    Args:
      texts: all that will be written.

    Attributes:
      families: the fonts' names, in the order in which matplotlib looks for a character.
      missing: characters that are written as code points.
    """

    def __init__(self, texts: Iterable[str]):
        wanted = {char for text in texts for char in text if char.isprintable() and not _invisible(char)} - {" "}
        backwards = frozenset() if _shapes() else {char for char in wanted if _right_to_left(char)}
        first = font_manager.findfont(font_manager.FontProperties())
        more, missing = _more_fonts(frozenset(wanted - _in_font(first, wanted) - backwards))
        self.missing = missing | backwards
        self.families = (font_manager.get_font(first).family_name, *more)

    @property
    def note(self) -> str:
        """What to tell the user; empty where every character is shown."""
        count = len(self.missing)
        if not count:
            return ""
        some = "".join(sorted(self.missing)[:5])
        return (
            f"{count} character{'s' * (count > 1)} of the texts ({some}{_ELLIPSIS * (count > 5)}) cannot be drawn with "
            "the fonts here and stand as code points in the picture; install a font with them, such as Noto Sans"
        )

    @contextmanager
    def fonts(self) -> Iterator[None]:
        """Text that is created and drawn in this context is written with `families`."""
        with matplotlib.rc_context({"font.family": list(self.families)}):
            yield

    def __call__(self, text: str, most: int = 120) -> str:
        """A text to be given to matplotlib: on one line, cut with an ellipsis, dollar signs escaped.

        Args:
          most: maximum width in characters; wide ones count twice.
        """
        shown, width = "", 0
        for char in " ".join(text.split()):
            piece = self._written(char)
            width += sum(1 + (unicodedata.east_asian_width(one) in "WF") for one in piece.replace("\\$", "$"))
            if width > most - 1:
                return shown.rstrip() + _ELLIPSIS
            shown += piece
        return shown

    def spelt(self, text: str) -> str:
        """A text of any length with its line feeds, to be drawn with `parse_math=False`."""
        return "".join(char if char == "\n" else self._spelt(char) for char in text)

    def _written(self, char: str) -> str:
        return "\\$" if char == "$" else self._spelt(char)  # one alone would be fine, two make a formula

    def _spelt(self, char: str) -> str:
        if _invisible(char):
            return ""
        if char in self.missing or not (char.isprintable() or char == " "):
            return char.encode("ascii", errors="backslashreplace").decode() if ord(char) > 127 else repr(char)[1:-1]
        return char


def _shapes() -> bool:
    return matplotlib.__version_info__[:2] >= _SHAPES


def _right_to_left(char: str) -> bool:
    return unicodedata.bidirectional(char) in ("R", "AL")


def _invisible(char: str) -> bool:
    """Whether it is a joiner, a direction mark or a variation selector."""
    return unicodedata.category(char) == "Cf" or "\ufe00" <= char <= "\ufe0f"


def _in_font(path: str, chars: Set[str]) -> set[str]:
    try:
        font = font_manager.get_font(path)
        return {char for char in chars if font.get_char_index(ord(char))}
    except (OSError, RuntimeError):  # gone, or of a kind that matplotlib cannot draw
        return set()


@functools.lru_cache(maxsize=8)
def _more_fonts(wanted: frozenset[str]) -> tuple[tuple[str, ...], set[str]]:
    """Names of system fonts that have these characters, those with most of them first, and what none has."""
    if not wanted:
        return (), set()
    faces = {}
    for font in sorted(font_manager.fontManager.ttflist, key=lambda font: (font.style != "normal", str(font.weight))):
        if not font.name.lower().startswith(_NO_FONTS) and "color" not in font.name.lower():
            faces.setdefault(font.name, font.fname)
    covered = {name: _in_font(path, wanted) for name, path in faces.items()}
    names, left = [], set(wanted)
    while covered and left:
        best = max(covered, key=lambda name: (len(covered[name] & left), "sans" in name.lower(), name))
        if not covered[best] & left:
            break
        names.append(best)
        left -= covered[best]
    return tuple(names), left


@dataclasses.dataclass(frozen=True)
class Picture:
    """Frames of one clip with the share of each patch that reaches the decoder.

    Attributes:
      frames: uint8 [T, H, W, 3].
      weights: [T, side, side] summed over the sampler's K tokens, or None where the adapter weighs nothing.
      title: what was asked and what is true.
    """

    frames: np.ndarray
    weights: np.ndarray | None
    title: str
