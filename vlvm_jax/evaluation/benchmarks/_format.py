"""What a format of question lists states, and what several formats share."""

import dataclasses
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from vlvm_jax import storage
from vlvm_jax.data import json_lines
from vlvm_jax.data.prompt.conversation import PLACEHOLDER
from vlvm_jax.data.record import Record, check_object, short
from vlvm_jax.data.sources import media_keys, options
from vlvm_jax.errors import InputError
from vlvm_jax.evaluation.clip_files import ClipFiles
from vlvm_jax.evaluation.questions import Draft, Question
from vlvm_jax.json_text import LONE_SURROGATE

CLIP_KEYS = ("video_name", "video", "videoID", "video_id", "q_uid")  # that name a clip, the likeliest first
ID_KEYS = ("id", "question_id", "qid")
TYPE_KEYS = ("type", "question_type", "task_type", "task_name")
_ESCAPED_HALF = re.compile(r"\\u[dD][89a-fA-F]")


@dataclasses.dataclass(frozen=True)
class ListFile:
    """A list of questions to be read.

    Attributes:
      path: of the list.
      format: its name, for messages.
      clips: finds the clips.
      answers: path of the list of answers, for formats that have one.
      unread: counts keys that look like a part of the clip.
    """

    path: str
    format: str
    clips: ClipFiles
    answers: str | None = None
    unread: Counter[str] = dataclasses.field(default_factory=Counter)

    def records(self) -> Iterator[tuple[int, dict[str, Any], str]]:
        """`records` of the list."""
        return records(self.path, self.unread)

    def refuse_options(self, raw: Mapping[str, Any], where: str) -> None:
        """Raises `InputError` if a record has options, which the format does not have."""
        if keys := options.keys_in(raw):
            raise InputError(
                f"{where}: {keys[0]!r} holds options, which the format {self.format!r} does not have; leave --format "
                "to be detected, or give 'plain'"
            )


def _never(_raw: Mapping[str, Any]) -> bool:
    return False


@dataclasses.dataclass(frozen=True)
class ListFormat:
    """A format of question lists. Each module of this folder defines one as `FORMAT`; it is named after its module.

    Attributes:
      precedence: if a record matches several formats, the lowest number wins. No two formats have the same.
      read: returns the list's questions in order.
      matches: whether a list can have the format if this is its first record.
      ending: of files that have the format whatever they hold, in lower case; "" for lists of JSON objects.
      answers_beside: returns the path of the answers that belong to a list; None if the list holds its answers.
      reads_span: `start` and `end` of a record are read.
    """

    precedence: int
    read: Callable[[ListFile], Iterable[Draft]]
    matches: Callable[[Mapping[str, Any]], bool] = _never
    ending: str = ""
    answers_beside: Callable[[str], str] | None = None
    reads_span: bool = False


# --- which format a record has -----------------------------------------------------------------------------------


def has_ids(raw: Mapping[str, Any]) -> bool:
    """Whether a record names its clip and its question as the lists of IG-VLM do."""
    return "video_name" in raw and "question_id" in raw


def offers_options(raw: Mapping[str, Any]) -> bool:
    """Whether a record, which is no conversation, has options."""
    return "conversations" not in raw and bool(options.keys_in(raw))


def tells_right_option(raw: Mapping[str, Any]) -> bool:
    """Whether a record has a key for the right one of its options."""
    return any(raw.get(key) not in (None, "") for key in (*options.ANSWERS, *options.NUMBERS))


# --- what a record says ------------------------------------------------------------------------------------------


def about_clip(raw: Mapping[str, Any], where: str, clips: ClipFiles, key: str, **more: Any) -> Question:
    """A question about the clip that a record names under a key; `more` is the rest of it."""
    try:
        path = clips.path(text_of(raw, key, where))
    except ValueError as error:
        raise InputError(f"{where}: {key!r}: {error}") from None
    name = id_of(raw, "question_id", where)
    return Question(name, where, (("video", path),), missing=path in clips.missing, **more)


def of_record(record: Record, name: str, clips: ClipFiles) -> Question:
    """The question of a record with one exchange. If its media do not all come first, `prompt` says where they are."""
    if record.system:
        raise InputError(f"{record.source}: a system turn, which questions are asked without here; leave it out")
    turn = record.turns[0]
    text = (turn.question.replace(PLACEHOLDER, "") if record.media else turn.question).strip()
    in_front = turn.question.strip().endswith(text)
    missing = any(path in clips.missing for _, path in record.media)
    return Question(
        name,
        record.source,
        record.media,
        text,
        turn.answer,
        type=turn.type or "all",
        span=record.span,
        missing=missing,
        prompt="" if in_front else turn.question.strip(),
    )


def id_of(raw: Mapping[str, Any], key: str, where: str) -> str:
    """A record's id, which may be a number."""
    value = raw.get(key)
    if isinstance(value, bool) or not isinstance(value, int | str) or value == "":
        raise InputError(f"{where}: {key!r} must be a text or a whole number, found {short(value)}")
    return str(value)


def text_of(raw: Mapping[str, Any], key: str, where: str) -> str:
    """A record's text under a key, which may not be empty."""
    value = raw.get(key)
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{where}: {key!r} must be a text that is not empty, found {short(value)}")
    return value.strip()


def answer_of(raw: Mapping[str, Any], key: str, where: str) -> str:
    """A record's answer under a key. A number, which some lists have for an answer, is taken as its text."""
    value = raw.get(key)
    if value in ("nan", "NaN") or (isinstance(value, float) and not math.isfinite(value)):
        raise InputError(f"{where}: {key!r} is {value}, which tables write for what is missing; give the answer")
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else text_of(raw, key, where)


def clip_key(raw: Mapping[str, Any]) -> str | None:
    """The key under which a record names its clip; None if it names none."""
    return next((key for key in CLIP_KEYS if raw.get(key) not in (None, "")), None)


def first_of(raw: Mapping[str, Any], keys: Sequence[str], where: str) -> Any:
    """The text of the first of these keys that the record has; None if it has none."""
    key = next((key for key in keys if raw.get(key) not in (None, "")), None)
    return None if key is None else id_of(raw, key, where)


# --- files -------------------------------------------------------------------------------------------------------


def read_bytes(path: str, flag: str) -> bytes:
    """A file that a flag names. Raises `InputError` if there is none."""
    try:
        return storage.read_bytes(path)
    except (FileNotFoundError, IsADirectoryError):
        raise InputError(f"{flag}={path}: no such file") from None


def records(path: str, unread: Counter[str] | None = None) -> Iterator[tuple[int, dict[str, Any], str]]:
    """The index, the object and `file: record index` of each record of a list.

    Args:
      unread: counts keys that look like a part of the clip.

    Raises:
      InputError: one is not JSON, or no object; a question that is left out would change the accuracy.
    """
    for entry in json_lines.parse(read_bytes(path, "--questions"), path):
        if entry.error:
            raise InputError(f"{path if entry.line else entry.where}: {entry.error}")
        check_object(entry.value, entry.where)
        if _ESCAPED_HALF.search(entry.text) and LONE_SURROGATE.search(json.dumps(entry.value, ensure_ascii=False)):
            raise InputError(
                f"{entry.where}: holds half a character (a lone surrogate), such as \\ud83d without the rest"
            )
        if unread is not None:
            count_spans(entry.value, unread)
        yield entry.index, entry.value, entry.where


def count_spans(raw: Mapping[str, Any], unread: Counter[str]) -> None:
    """Counts the keys of a record that look like a part of the clip."""
    unread.update(media_keys.spans(raw))
    unread.update(key for key in ("start", "end") if raw.get(key) not in (None, ""))
