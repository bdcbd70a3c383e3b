"""Whether an answer is right: rules for free text, parsers of multiple choice, accuracies.

Every rule here is decidable from the text alone and always gives the same; none is the judge with which papers score
open-ended answers.

Free text: `exact`, `normalised`, `contains`, `yes_no` (see `MATCHES`). Multiple choice: `strict` is this library's;
`slowfast_released` and `t2vid_released` do what the code released with SlowFast-LLaVA and with T2Vid does, slips
included (docs/free_video_llm.md, docs/t2vid.md), as far as they go without a model that judges.
"""

import dataclasses
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from vlvm_jax.evaluation.answer_letters import parse_strict
from vlvm_jax.evaluation.normalisation import normalise
from vlvm_jax.evaluation.yes_no import read_yes_no

Match = Literal["exact", "normalised", "contains", "yes_no"]
Parser = Literal["strict", "slowfast_released", "t2vid_released"]


def _exact(said: str, true: str) -> bool:
    return said.strip() == true.strip()


def _normalised(said: str, true: str) -> bool:
    return normalise(said) == normalise(true)


def _contains(said: str, true: str) -> bool:
    """The true answer's words stand in the reply, next to each other and in order."""
    wanted = normalise(true)
    return bool(wanted) and f" {wanted} " in f" {normalise(said)} "


def _yes_no(said: str, true: str) -> bool:
    """Whether the reply says yes or no, as the true answer does. False for any other true answer."""
    return read_yes_no(said) == normalise(true)


MATCHES: Mapping[str, Callable[[str, str], bool]] = {
    "exact": _exact,
    "normalised": _normalised,
    "contains": _contains,
    "yes_no": _yes_no,
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
    match = re.search(r"[A-E](?=\.)", reply) or re.search("[A-E]", reply)
    return match[0] if match else None


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
