"""Whether an answer is right: rules for free text, parsers of multiple choice, accuracies.

Every rule here is decidable from the text alone and always gives the same; none is the judge with which papers score
open-ended answers.

Free text: `exact`, `normalised`, `contains` (see `MATCHES`). Multiple choice: `strict` is this library's;
`slowfast_released` and `t2vid_released` do what the code released with SlowFast-LLaVA and with T2Vid does, slips
included (specs free_video_llm.md section 8 and t2vid.md section 8), as far as they go without a model that judges.
"""

import dataclasses
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from vlvm_jax.data.text.prompts import in_words

Match = Literal["exact", "normalised", "contains"]
Parser = Literal["strict", "slowfast_released", "t2vid_released"]

_NUMBERS = {in_words(number): str(number) for number in range(100)}
_NUMBER = re.compile(rf"\b(?:{'|'.join(sorted(_NUMBERS, key=len, reverse=True))})\b")
_GROUPED = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_POINT = re.compile(r"(?<=\d)\.(?=\d)")
_ARTICLE = re.compile(r"\b(?:a|an|the)\b")


def normalise(text: str) -> str:
    """What the rules `normalised` and `contains` compare.

    In this order: Unicode NFKC and casefold; English numerals from zero to ninety-nine become digits; commas that group
    digits and apostrophes go, other punctuation and symbols become spaces, but for decimal points; the words a, an and
    the go; what white space is left becomes single spaces. An answer of nothing but articles keeps them.
    """
    text = unicodedata.normalize("NFKC", text).casefold()
    text = _NUMBER.sub(lambda found: _NUMBERS[found[0]], text)
    text = _GROUPED.sub("", text).replace("'", "").replace("\u2019", "")
    points = {found.start() for found in _POINT.finditer(text)}
    text = "".join(
        " " if unicodedata.category(char)[0] in "PS" and place not in points else char
        for place, char in enumerate(text)
    )
    return " ".join(_ARTICLE.sub(" ", text).split()) or " ".join(text.split())


def _exact(said: str, true: str) -> bool:
    return said.strip() == true.strip()


def _normalised(said: str, true: str) -> bool:
    return normalise(said) == normalise(true)


def _contains(said: str, true: str) -> bool:
    """The true answer's words stand in the reply, next to each other and in order."""
    wanted = normalise(true)
    return bool(wanted) and f" {wanted} " in f" {normalise(said)} "


MATCHES: Mapping[str, Callable[[str, str], bool]] = {
    "exact": _exact,
    "normalised": _normalised,
    "contains": _contains,
}

_SLOWFAST = tuple((letter, (f"{letter}:", f"{letter})")) for letter in "ABCDE")


def parse_slowfast(reply: str, options: Sequence[str] = ()) -> str | None:
    """The letter that SlowFast-LLaVA's released parser reads, None for a reply that it counts as wrong.

    The first character, if it is one of A to E in either case, unless behind "answer is" (or anywhere, where that is
    not said) a letter with a colon or closing bracket stands: then the first of A to E in the alphabet that does. An
    empty reply, on which the released code fails, is wrong.
    """
    letter = reply[0].upper() if reply[:1] in tuple("ABCDEabcde") else None
    rest = reply.partition("answer is")[2] if "answer is" in reply else reply
    return next((named for named, marks in _SLOWFAST if any(mark in rest for mark in marks)), letter)


# Longest first. Four more phrases of the released list never work: commas are missing between them.
_T2VID_PREFIXES = ("The best answer is", "The correct answer is", "The answer is", "The answer", "Answer:")


def parse_t2vid(reply: str, options: Sequence[str] = ()) -> str | None:
    """The letter that T2Vid's released parser reads, None where it would ask a language model.

    Answer phrases go, then the first of A to E before a full stop counts, else the first of these capitals anywhere.
    """
    for prefix in _T2VID_PREFIXES:
        reply = reply.replace(prefix, "")
    found = re.search(r"[A-E](?=\.)", reply) or re.search("[A-E]", reply)
    return found[0] if found else None


_PHRASE = re.compile(r"\b(?:answer|option|choice)\s*(?:is\b|:)\s*:?\s*(?:option\s+)?[*\"']*\s*", re.IGNORECASE)
# A letter after a phrase: in brackets, or before punctuation or the end, or (but for A, a word too) before a space.
_NAMED = re.compile(r"\(([A-Za-z])\)|([A-Za-z])(?=[.,:;)!*\"']|\s*$)|([B-HJ-Z])(?=\s)")
_ALONE = re.compile(r"[(\[]?([A-Za-z])[)\]]?[.:]?")
_AT_START = re.compile(r"\(([A-Za-z])\)|\[([A-Za-z])\]|([A-Z])[.:)](?![A-Za-z])|([a-z])\)(?![A-Za-z])")


def parse_strict(reply: str, options: Sequence[str] = ()) -> str | None:
    """The letter that a reply states beyond doubt, None for any other.

    In this order: a lone letter; a letter in brackets, or followed by a full stop, a colon or a bracket, at the start;
    a letter right behind "answer is", "option:" or the like, the same one behind all of these; a reply that is the text
    of exactly one option, normalised. Letters beyond the last option do not count.

    Args:
      options: texts, A's first; without them the letters are A to E and no text is compared.
    """
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[: len(options) or 5]
    reply = reply.strip().strip("*\"'").strip()
    found = _ALONE.fullmatch(reply) or _AT_START.match(reply)
    if found:
        named = {_letter(found)}
    else:
        behind = (_NAMED.match(reply, phrase.end()) for phrase in _PHRASE.finditer(reply))
        named = {_letter(match) for match in behind if match}
    if not named:
        said = normalise(reply)
        named = {letter for letter, text in zip(letters, options, strict=False) if said and normalise(text) == said}
    return next(iter(named)) if len(named) == 1 and named <= set(letters) else None


def _letter(match: re.Match[str]) -> str:
    return next(group for group in match.groups() if group).upper()


PARSERS: Mapping[str, Callable[[str, Sequence[str]], str | None]] = {
    "strict": parse_strict,
    "slowfast_released": parse_slowfast,
    "t2vid_released": parse_t2vid,
}


@dataclasses.dataclass(frozen=True)
class Mark:
    """One question's mark under one rule: its type, and whether the answer is right."""

    type: str
    right: bool


def accuracies(marks: Sequence[Mark]) -> dict[str, Any]:
    """Of marks: how many there are, `accuracy` over all (micro), by type, and `macro_accuracy`, the mean over types.

    Accuracies are None where there is nothing to count.
    """
    by_type: dict[str, list[bool]] = defaultdict(list)
    for mark in marks:
        by_type[mark.type].append(mark.right)
    shares = {kind: sum(rights) / len(rights) for kind, rights in sorted(by_type.items())}
    return {
        "questions": len(marks),
        "accuracy": sum(mark.right for mark in marks) / len(marks) if marks else None,
        "macro_accuracy": sum(shares.values()) / len(shares) if shares else None,
        "by_type": shares,
        "questions_by_type": {kind: len(by_type[kind]) for kind in shares},
    }
