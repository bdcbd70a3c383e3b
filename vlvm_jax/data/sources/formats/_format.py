"""What an annotation format states, and what several formats share."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from vlvm_jax.data.record import short
from vlvm_jax.data.sources import media_keys
from vlvm_jax.errors import InputError

Turns = list[dict[str, Any]]
Parse = Callable[[Mapping[str, Any], str, Counter], tuple[Turns, dict[str, Any]]]


@dataclasses.dataclass(frozen=True)
class Format:
    """An annotation format. Each module of this folder defines one as `FORMAT`; it is named after its module.

    Attributes:
      keys: a record that has all of these keys can have the format.
      precedence: if a record matches several formats, the lowest number wins. No two formats have the same.
      parse: returns a record's turns and media. Its arguments are the record, `file: record index` for messages, and a
        counter of keys that look like media but are not read. None for LLaVA's format, which the others become.
      texts: further keys that hold text, in which a file's name is no medium.
      lists: those of the keys whose values are lists; a table's column may hold them as JSON.
      clip_by_id: the first key holds the clip's id, which is never a path. Tables are not read in such a format.
      checked_turns: the turns of a record that are checked for media of their own, which are not read.
    """

    keys: tuple[str, ...]
    precedence: int
    parse: Parse | None
    texts: tuple[str, ...] = ()
    lists: tuple[str, ...] = ()
    clip_by_id: bool = False
    checked_turns: Callable[[Mapping[str, Any]], Any] | None = None

    def matches(self, raw: Mapping[str, Any]) -> bool:
        """Whether a record has the format's keys."""
        return all(key in raw for key in self.keys)


def exchange(question: Any, answer: Any) -> Turns:
    """The two turns of a question and its answer."""
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]


def exchanges(questions: tuple[str, ...], answer: str) -> Parse:
    """A `parse` for records with a key for each question and one answer to all of them."""

    def parse(raw: Mapping[str, Any], where: str, _notes: Counter) -> tuple[Turns, dict[str, Any]]:
        turns = [turn for question in questions for turn in exchange(raw[question], raw[answer])]
        return turns, media_keys.read(raw, where)

    return parse


def history(raw: Mapping[str, Any], where: str) -> Turns:
    """The earlier turns, which `history` holds as [[question, answer], ...]."""
    pairs = raw.get("history")
    if media_keys.is_empty(pairs):
        return []
    if not isinstance(pairs, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        raise InputError(f"{where}: 'history' must be a list of [question, answer], found {short(pairs)}")
    return [turn for pair in pairs for turn in exchange(*pair)]
