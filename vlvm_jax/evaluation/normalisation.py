"""Normalises texts before they are compared."""

import re
import unicodedata

from vlvm_jax.data.numerals import in_words

_NUMBERS = {in_words(number): str(number) for number in range(100)}
_NUMBER = re.compile(rf"\b(?:{'|'.join(sorted(_NUMBERS, key=len, reverse=True))})\b")
_GROUPED = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_POINT = re.compile(r"(?<=\d)\.(?=\d)")
ARTICLES = re.compile(r"\b(?:a|an|the)\b")


def normalise(text: str, dropped: re.Pattern[str] = ARTICLES) -> str:
    """What the rules `normalised` and `contains` compare.

    In this order: Unicode NFKC and casefold; English numerals from zero to ninety-nine become digits; commas that group
    digits and apostrophes go, other punctuation and symbols become spaces, but for decimal points; the words a, an and
    the go; what white space is left becomes single spaces. An answer of nothing but articles keeps them.

    Args:
      dropped: the words to remove.
    """
    text = unicodedata.normalize("NFKC", text).casefold()
    text = _NUMBER.sub(lambda match: _NUMBERS[match[0]], text)
    text = _GROUPED.sub("", text).replace("'", "").replace("\u2019", "")
    points = {match.start() for match in _POINT.finditer(text)}
    text = "".join(
        " " if unicodedata.category(char)[0] in "PS" and place not in points else char
        for place, char in enumerate(text)
    )
    return " ".join(dropped.sub(" ", text).split()) or " ".join(text.split())
