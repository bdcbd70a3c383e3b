"""Reads the options of a multiple-choice question, and which one is right, from the layouts of public benchmarks.

Options: a list or an object under `options`, `candidates`, `choices`, `answer_choices`; or one key for each: `a0`,
`a1`, ...; `option_0`, `option_1`, ... (`option 0`, `option0`, also from 1); `option_a`, `option_b`, ... (`optionA`);
`A`, `B`, ... Letters that all options carry themselves ("A. text") are removed.

The right one: a text, a letter or a number from 0, under one of `ANSWERS` or `NUMBERS`. A value that can be read in
several ways, such as "1" where options are numbers, is resolved from the whole list: `letters`.
"""

import ast
import dataclasses
import math
import re
import string
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from vlvm_jax import json_text
from vlvm_jax.data.record import short
from vlvm_jax.errors import InputError
from vlvm_jax.json_text import LONE_SURROGATE

LETTERS = string.ascii_uppercase
LISTS = ("options", "candidates", "choices", "answer_choices")
# Keys of the right option; under the second kind a number is never the option's text.
ANSWERS = ("answer", "correct_answer", "ground_truth", "gt", "GT")
NUMBERS = (
    "answer_number",
    "answer_idx",
    "answer_index",
    "answer_id",
    "correct_choice",
    "correct_idx",
    "correct_index",
    "correct_option",
    "label",
    "truth",
)
# One key for each option: what stands before its number from 0 or 1, or before its letter from A.
_NUMBERED = re.compile(r"(a|(?:option|choice|candidate)s?[ _-]?)([0-9]{1,2})", re.IGNORECASE)
_BY_LETTER = re.compile(r"((?:option|choice|candidate)[ _-]?|)([a-z])", re.IGNORECASE)
_SUSPECT = re.compile(
    r"(options?|opts|choices?|candidates?|distractors?|alternatives?|selections?|mc|mcq)|"
    r"(multi(ple)?|mc|answer|question|wrong|possible|candidate|negative)_?(options?|choices?|candidates?|answers?)(_?list)?",
    re.IGNORECASE,
)
# One key for each option, under names that are not read.
_UNREAD = re.compile(r"((?:op|opts?|selection|alternative|mc)[ _-]?)([a-z]|[0-9]{1,2})", re.IGNORECASE)
_LINES = re.compile(r"\(?A[.:)]\s.*\n\s*\(?B[.:)]\s", re.DOTALL)
_LETTERED = re.compile(r"\(?(?P<letter>[A-Za-z])[.:)]\s*(?P<text>.*)", re.DOTALL)  # "A. text", "(A) text"

Reading = Literal["text", "letter", "number", "key"]


@dataclasses.dataclass(frozen=True)
class Choice:
    """Options of one question.

    Attributes:
      options: their texts, without letters.
      written: their texts as the record has them.
      keys: their keys in an object, or the numbers of keys that begin with 1; empty for a list.
      names: whole keys, where each option has one.
      given: what the record says about the right one, by key.
    """

    where: str
    options: tuple[str, ...]
    written: tuple[str, ...]
    keys: tuple[str, ...]
    names: tuple[str, ...]
    given: Mapping[str, Any]

    def readings(self, key: str) -> dict[Reading, int]:
        """Each way in which the value under a key names exactly one option, and which."""
        value = self.given[key]
        if isinstance(value, float) and value.is_integer():
            value = int(value)  # a table's column of whole numbers with gaps
        if isinstance(value, bool) or not isinstance(value, int | str | float):
            return {}
        text, count = str(value).strip(), len(self.options)
        number = int(text) if re.fullmatch(r"[0-9]{1,2}", text) else count
        candidates: dict[Reading, list[int]] = {
            "letter": [i for i in range(count) if _letter(text) == LETTERS[i]],
            "number": [number] if number < count and not self.keys else [],
            "key": [i for i in range(count) if text in (*self.keys[i : i + 1], *self.names[i : i + 1])],
        }
        if key not in NUMBERS or not any(candidates.values()):
            candidates["text"] = [i for i in range(count) if text in (self.options[i], self.written[i])]
        return {how: places[0] for how, places in candidates.items() if len(places) == 1}


def _letter(text: str) -> str | None:
    """The letter in "B", "(B)", "B." or "B)", also of lower-case ones, in upper case."""
    match = re.fullmatch(r"\(?([A-Za-z])[.):]?", text)
    return match.group(1).upper() if match else None


def keys_in(raw: Mapping[str, Any]) -> list[str]:
    """Keys of a record that hold options, or look as if they did."""
    keys = [key for key in LISTS if raw.get(key) not in (None, "", [], {})]
    keys += [
        key
        for key, value in raw.items()
        if key not in LISTS and isinstance(key, str) and _SUSPECT.fullmatch(key) and _holds_several(value)
    ]
    return keys or list(_series(raw)[0]) or _unread_series(raw)


def _unread_series(raw: Mapping[str, Any]) -> list[str]:
    groups: dict[str, dict[str, str]] = {}
    for key, value in raw.items():
        match = _UNREAD.fullmatch(key) if isinstance(key, str) and not _is_absent(value) else None
        if match:
            groups.setdefault(match[1].lower(), {})[match[2].lower()] = key
    begins = (("a", "b"), ("0", "1"), ("1", "2"), ("01", "02"))
    return next((list(keys.values()) for keys in groups.values() if any(keys.keys() >= {*two} for two in begins)), [])


def _is_absent(value: Any) -> bool:
    """Whether a table has nothing here: pandas writes "nan"."""
    return value is None or value == "" or value in ("nan", "NaN") or (isinstance(value, float) and math.isnan(value))


def _holds_several(value: Any) -> bool:
    if isinstance(value, str):
        if _LINES.match(value.strip()):
            return True
        value = _parsed(value)
    return isinstance(value, list | tuple | dict) and len(value) > 1


def _series(raw: Mapping[str, Any]) -> tuple[dict[str, Any], bool]:
    """Options with a key each, in order, and whether their keys count from 1. One before the last may be absent."""
    groups: dict[str, dict[int, str]] = {}
    for key, value in raw.items():
        if not isinstance(key, str) or not (value is None or isinstance(value, str | int | float)):
            continue
        if match := _NUMBERED.fullmatch(key):
            groups.setdefault(match[1].lower(), {})[int(match[2])] = key
        elif match := _BY_LETTER.fullmatch(key):
            stem = f"{match[1].lower()}{'a' if match[2].islower() else 'A'}-"
            groups.setdefault(stem, {})[LETTERS.index(match[2].upper())] = key
    for stem, keys in groups.items():
        last = max((place for place, key in keys.items() if not _is_absent(raw[key])), default=-1)
        if last < 0:
            continue
        if last == min(keys):  # one option alone is an error where the record has keys for more
            last += 1
        places = {place: key for place, key in keys.items() if place <= last}
        first = min(places)
        whole = len(places) > 1 and sorted(places) == list(range(first, first + len(places)))
        if whole and (first == 0 or (first == 1 and not stem.endswith("-"))):
            return {places[place]: raw[places[place]] for place in sorted(places)}, first == 1
    return {}, False


def read(raw: Mapping[str, Any], where: str) -> Choice | None:
    """Options of a record, and what it says of the right one; None if it has no options.

    Raises:
      InputError: there are options, but they cannot be read.
    """
    lists = [name for name in LISTS if raw.get(name) not in (None, "", [], {})]
    series, from_one = _series(raw)
    if len(lists) > 1 or (lists and series):
        both = [*lists, *series][:2]
        raise InputError(f"{where}: options under {both[0]!r} and under {both[1]!r}; keep one of them")
    if lists:
        written, keys = _listed(raw[lists[0]], lists[0], where)
    elif series:
        if absent := [key for key, value in series.items() if _is_absent(value)]:
            raise InputError(
                f"{where}: {absent[0]!r} is empty, but {next(iter(series))!r} holds an option; a question's options "
                "have no gaps, and are at least 2"
            )
        written = tuple(str(value).strip() for value in series.values())
        keys = tuple(str(number) for number in range(1, len(written) + 1)) if from_one else ()
    else:
        if unread := keys_in(raw):
            raise InputError(
                f"{where}: {unread[0]!r} looks like options, but is no key that is read; rename it to 'options'"
            )
        return None
    if not 2 <= len(written) <= len(LETTERS):
        raise InputError(f"{where}: {len(written)} options; a question has 2 to {len(LETTERS)}")
    given = {name: raw[name] for name in (*ANSWERS, *NUMBERS) if not _is_absent(raw.get(name))}
    if half := next((one for one in written if LONE_SURROGATE.search(one)), None):
        raise InputError(f"{where}: an option holds half a character (a lone surrogate): {short(half)}")
    _check_letters(written, where)
    return Choice(where, _without_letters(written), written, keys, tuple(series), given)


def _listed(value: Any, key: str, where: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Texts of options, and their keys in an object."""
    value = _parsed(value) if isinstance(value, str) else value
    keys: tuple[str, ...] = ()
    if isinstance(value, dict):
        keys, value = tuple(str(one).strip() for one in value), list(value.values())
        orders = [list(LETTERS[: len(keys)]), *([str(n) for n in range(start, start + len(keys))] for start in (0, 1))]
        order = sorted(keys, key=lambda one: (len(one), one))
        if [one.upper() for one in order] not in orders:
            raise InputError(
                f"{where}: the keys of {key!r} must be the letters from A or the numbers from 0 or 1, found "
                f"{short(list(keys))}"
            )
        value, keys = [dict(zip(keys, value, strict=True))[one] for one in order], tuple(order)
    if isinstance(value, list):
        while value and _is_absent(value[-1]) and value[-1] is not None:
            value = value[:-1]
        if any(_is_absent(one) for one in value):
            raise InputError(f"{where}: {key!r} has an empty option before the last, found {short(value)}")
        keys = keys[: len(value)]
    if (
        not isinstance(value, list)
        or not 2 <= len(value) <= len(LETTERS)
        or not all(isinstance(one, str | int | float) and not isinstance(one, bool) for one in value)
    ):
        raise InputError(f"{where}: {key!r} must be a list of 2 to {len(LETTERS)} texts, found {short(value)}")
    return tuple(str(one).strip() for one in value), keys


def _parsed(text: str) -> Any:
    """The list that a table's column holds as JSON or Python; else the text."""
    if not text.strip().startswith(("[", "{", "(")):
        return text
    for load in (json_text.loads, ast.literal_eval):
        try:
            value = load(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        return list(value) if isinstance(value, tuple) else value
    return text


def _check_letters(written: Sequence[str], where: str) -> None:
    matches = [_LETTERED.fullmatch(one) for one in written]
    letters = [match["letter"].upper() for match in matches if match]
    if letters != sorted(letters) and sorted(letters) == list(LETTERS[: len(written)]):
        raise InputError(
            f"{where}: the options' own letters are {', '.join(letters)}; put the options in the order of their letters"
        )


def _without_letters(written: Sequence[str]) -> tuple[str, ...]:
    """Options without the letters that all of them carry, in order."""
    matches = [_LETTERED.fullmatch(one) for one in written]
    texts = [match["text"].strip() for match in matches if match]
    letters = [match["letter"].upper() for match in matches if match]
    if len(texts) == len(written) and all(texts) and letters == list(LETTERS[: len(written)]):
        return tuple(texts)
    return tuple(written)


def letters(choices: Sequence[Choice]) -> list[str]:
    """Letter of the right option of each question of a list.

    Raises:
      InputError: a record does not name the right option or names none of its options, two of its keys disagree, or a
        value can be read in several ways and the other records do not decide between them.
    """
    possible: dict[str, set[Reading]] = {}  # readings of a key that all records allow
    for choice in choices:
        for key in choice.given:
            if readings := choice.readings(key):
                possible[key] = possible.get(key, set(readings)) & readings.keys()
    return [LETTERS[_right(choice, possible)] for choice in choices]


def _right(choice: Choice, possible: Mapping[str, set[Reading]]) -> int:
    if not choice.given:
        raise InputError(
            f"{choice.where}: options, but no key that names the right one; give its text, letter or number under "
            "'answer'"
        )
    right: dict[str, int] = {}
    for key in choice.given:
        readings = choice.readings(key)
        places = set(readings.values())
        if len(places) > 1:
            agreed = {place for how, place in readings.items() if how in possible[key]}
            places = agreed if len(agreed) == 1 else places
        if len(places) > 1 or (not places and key in NUMBERS):
            raise _refusal(choice, key, "more than one" if places else "none")
        if places:
            right[key] = places.pop()
    if not right:
        raise _refusal(choice, next(iter(choice.given)), "none")
    if len(set(right.values())) > 1:
        told = ", ".join(f"{key!r} {short(choice.given[key])} is {LETTERS[place]}" for key, place in right.items())
        raise InputError(f"{choice.where}: the keys of the right option disagree: {told}; keep the one that is right")
    return next(iter(right.values()))


def _refusal(choice: Choice, key: str, what: str) -> InputError:
    value, last = choice.given[key], len(choice.options) - 1
    if key in NUMBERS and not isinstance(value, str):
        return InputError(
            f"{choice.where}: {key!r} must be from 0 to {last}, the last of the options; found {short(value)}"
        )
    told = "" if what == "none" else ", and the rest of the list does not tell which is meant"
    return InputError(
        f"{choice.where}: {key!r} {short(value)} is the text or the letter of {what} of the options{told}; give a "
        f"letter from A to {LETTERS[last]} that is no option's text, one option's text, or its number from 0"
    )
