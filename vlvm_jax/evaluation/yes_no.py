"""Whether a reply says yes or no."""

import re
from typing import Literal

from vlvm_jax.evaluation.normalisation import normalise
from vlvm_jax.evaluation.replies import (
    ANSWER_PHRASE,
    FINAL_PHRASE,
    MOST_TAGS,
    doubted,
    final_part,
    plain,
    shortened,
    tagged,
)

YesNo = Literal["yes", "no"]
# "No" that begins an expression ("no one", "no doubt", "no 5") says nothing.
_EXPRESSION = (
    r"(?<=no)(?:\.?\s*\d|[\s\-]+(?:one|matter|doubts?|problems?|ideas?|longer|more|less|fewer|later|sooner|wonder|worries"
    r"|clues?|need|question|way\s+to|wait)\b)"
)
_WORD = re.compile(rf"[\s('\"]*(yes|no)\b(?!'|{_EXPRESSION})", re.IGNORECASE)
# A correction in the same sentence or the next ones, with the word alone: "Yes. Actually, no."
_CORRECTED = re.compile(
    r"\W[^\n]{0,160}?\b(?:wait|actually|sorry|however|but|hmm|oops|correction|rather|I\s+mean|on\s+second\s+thoughts?)\b"
    r"[^\n]{0,80}?\b(yes|no)\b(?=\s*(?:[.,;:!]|\Z))",
    re.IGNORECASE,
)
_OTHER = re.compile(r"\s*(?:,?\s(?:and|or)\s|/|&)\s*(yes|no)\b|\W+(yes|no)\W*\Z", re.IGNORECASE)


def read_yes_no(reply: str) -> YesNo | None:
    r"""What a reply says, None for neither.

    What follows `</think>` is read, and if there is `<answer>...</answer>` or `\boxed{...}`, only what is in it. The
    first of these that says something decides: the word after "final answer is" and the like; the word after "answer
    is", "answer:" and the like; the first word. If it says both ("yes and no", "Yes. Actually, no"), the reply says
    neither; so do "no one", "no doubt" and the like. Of a reply of more than 4,000 characters without marks, the first
    and the last 2,000 are read.
    """
    said = final_part(reply)
    if marked := tagged(said):
        texts = dict.fromkeys(marked) if len(marked) <= MOST_TAGS else ()
        answers: set[YesNo] = {answer for text in texts if (answer := read_yes_no(text)) is not None}
    else:
        text = plain(shortened(said))
        rules = (lambda: _after(text, FINAL_PHRASE), lambda: _after(text, ANSWER_PHRASE), lambda: _at(text, 0))
        answers = next((answers for rule in rules if (answers := rule())), set())
    return answers.pop() if len(answers) == 1 else None


def is_yes_no(answer: str) -> bool:
    """Whether a true answer is yes or no, in any case and with any punctuation."""
    return normalise(answer) in ("yes", "no")


def _after(text: str, phrase: re.Pattern[str]) -> set[YesNo]:
    places = (match.end() for match in phrase.finditer(text) if not doubted(text, match.start()))
    return set().union(*(_at(text, place) for place in places))


def _at(text: str, place: int) -> set[YesNo]:
    word = _WORD.match(text, place)
    if word is None:
        return set()
    other = _OTHER.match(text, word.end())
    corrected = _CORRECTED.match(text, word.end())
    words = (word[1], *(other.groups() if other else ()), corrected[1] if corrected else None)
    return {"yes" if said.lower() == "yes" else "no" for said in words if said}
