"""One conversation over its media, from an object in the LLaVA format.

    {"id": "1", "video": "clips/1.mp4", "conversations": [{"from": "human", "value": "..."}, {"from": "gpt", ...}]}

`image` and `video` are a path or a list of paths. A list of images under `video` is one clip, as is such a list within
a list. `type` (of all) or `types` (of each) names the kind of question; `start` and `end`, in seconds, say which part
of the record's clips counts.
"""

import abc
import contextlib
import dataclasses
import math
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import PurePosixPath
from typing import Any, Literal

import numpy as np
from jaxtyping import UInt8

from vlvm_jax import json_text, storage
from vlvm_jax.data.faults import BadSampleError
from vlvm_jax.data.media_names import join, other_spellings, without_scheme
from vlvm_jax.errors import InputError
from vlvm_jax.json_text import LONE_SURROGATE

MediaKind = Literal["image", "video"]
MEDIA_KINDS: tuple[MediaKind, ...] = ("image", "video")  # in the order in which a record's media are counted
PLACEHOLDERS = ("<image>", "<video>")
ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
_LEADS = re.compile(r"\s*(<image>|<video>)+(\s|\w|$)")  # where LLaVA and others put placeholders
_ENDS = re.compile(r"\n\s*(<image>|<video>)+\s*$")
# A file's name in the text, as Qwen-VL's and ms-swift's own readers take it.
_TAGGED = re.compile(
    r"<(img|image|video|audio)>\s*[^<>\n]*(?:\.[A-Za-z0-9]{2,4}|://[^<>\n]*)\s*</\1>|<(img)>[^<>\n]+</img>",
    re.IGNORECASE,
)
# Where a placeholder without its medium is no word of the text: at a line's end, several times, or another model's.
_AT_LINE_END = re.compile(r"(<image>|<video>)[ \t]*(\r?\n|$)", re.IGNORECASE)
_OF_MODELS = re.compile(r"<\|(?:vision_start|(?:image|video)(?:_pad|_\d+)?)\|>|<IMG_CONTEXT>")
_HTML = re.compile(r"</(image|video)>|<(?:image|video)>\W*\s(?:html ?)?(?:tag|element|attribute)", re.IGNORECASE)
_UNFIT = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")  # in no name: control characters, half ones
TOOL_ROLES = ("observation", "function_call", "function", "function_response", "tool", "tool_call", "tool_response")
STILLS = (".jpg", ".jpeg", ".png", ".webp", ".bmp")  # endings of what a clip kept as images consists of
LISTED = "\t"  # in a path, between the frames of a clip that is a list of images

Name = str | tuple[str, ...]  # of a medium as the annotation gives it; several are the frames of one clip


@dataclasses.dataclass(frozen=True)
class Turn:
    """One exchange. `type` names the kind of question where the annotation gives it, for evaluation; `options` are
    what a multiple-choice question offers, without letters."""

    question: str
    answer: str
    type: str = ""
    options: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Record:
    """One conversation over its media.

    Attributes:
      id: the record's own id, or its index.
      source: `file: record index`, for messages.
      media: (kind, path) in the order of their placeholders; empty for text alone. What a path may be: `containers`.
      turns: question and answer, with `<image>` placeholders still in the questions, one per medium.
      system: instructions before the turns, instead of the chat template's own; "" for none.
      span: seconds from and to which the record's clips count, the end infinite for their own; None for all of them.
    """

    id: str
    source: str
    media: tuple[tuple[MediaKind, str], ...]
    turns: tuple[Turn, ...]
    system: str = ""
    span: tuple[float, float] | None = None

    @property
    def kind(self) -> str:
        if not self.media:
            return "text"
        return "video" if any(kind == "video" for kind, _ in self.media) else "image"


KINDS = ("text", "image", "video", "bad")  # of records; "bad" ones cannot even be told apart


class Source(Sequence[Record]):
    """Records that are made when they are asked for. Small to pickle: what is open, stays with its process.

    Attributes:
      path: where they come from, for messages.
      codes: index into `KINDS` of each record, as far as that can be told without reading it whole.
      types: of each record its questions' types, each once.
      notes: what to tell the user about the source, a line each.
    """

    path: str
    notes: tuple[str, ...] = ()
    codes: UInt8[np.ndarray, "n"]
    types: Sequence[tuple[str, ...]]

    @property
    def kinds(self) -> np.ndarray:
        """Of each record "text", "image", "video" or "bad"."""
        return np.array(KINDS)[self.codes]

    @abc.abstractmethod
    def digest(self) -> str:
        """Hash of the annotations, the same wherever they lie."""

    @abc.abstractmethod
    def read(self, index: int, where: str) -> Record:
        """One record. Raises `InputError`, `ValueError` or `FileNotFoundError` where it is of no use."""

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, index: int) -> Record:
        """One record.

        Raises:
          BadSampleError: `bad_record`.
          StorageError: storage does not answer.
        """
        index = range(len(self))[index]
        where = f"{self.path}: record {index}"
        try:
            return self.read(index, where)
        except PermissionError:  # to storage: nothing that the record is to blame for
            raise
        except InputError as error:
            detail = str(error)
        except FileNotFoundError as error:
            detail = f"{where}: there is no file {error}"
        except ValueError as error:
            detail = f"{where}: {' '.join(str(error).split())}"
        except RecursionError:
            detail = f"{where}: {json_text.TOO_DEEP}"
        raise BadSampleError("bad_record", detail)


def evenly(total: int, most: int | None) -> list[int]:
    """Indices of `total` things; of more than `most`, this many evenly spread from the first to the last."""
    most = total if most is None else min(most, total)
    return [number * (total - 1) // max(most - 1, 1) for number in range(most)]


def usable(records: Sequence[Record], most: int | None = None) -> Iterator[Record]:
    """The records that are of use, in order; of more than `most` this many from all over."""
    for index in evenly(len(records), most):
        with contextlib.suppress(BadSampleError):
            yield records[index]


def kind_code(raw: Any) -> int:
    """Index into `KINDS` of what the record of a LLaVA object will be."""
    if not isinstance(raw, dict):
        return KINDS.index("bad")
    kind = next((kind for kind in ("video", "image") if raw.get(kind) is not None), "text")
    return KINDS.index(kind)


def types_of(raw: Any) -> tuple[str, ...]:
    """The types of a LLaVA object's questions, each once."""
    if not isinstance(raw, dict):
        return ()
    types = raw.get("types") or [raw.get("type", "")]
    return tuple(dict.fromkeys(str(one) for one in types if one)) if isinstance(types, list) else ()


def parse(raw: Any, where: str, index: int, locate: Callable[[int, Name], str]) -> Record:
    """The record of one object in the LLaVA format.

    Args:
      where: `file: record index`, with which messages begin.
      locate: path of the n-th medium, images counted before videos, from its name; a `ValueError` of a name that may
        not be.

    Raises:
      InputError: the object is not in the format.
    """
    check_object(raw, where)
    media: list[tuple[MediaKind, str]] = []
    for kind, name in names_in(raw, where):
        try:
            media.append((kind, locate(len(media), name)))
        except ValueError as error:
            raise InputError(f"{where}: {error}") from None
    system, turns = _turns(raw, where)
    ordered, placed = _place(turns, media, where)
    return Record(str(raw.get("id", index)), where, tuple(ordered), placed, system, _span(raw, where))


def check_object(raw: Any, where: str) -> None:
    """Raises `InputError` for a record that is no JSON object."""
    if not isinstance(raw, dict):
        raise InputError(f"{where}: expected an object, found {type(raw).__name__}")


def below(root: str) -> Callable[[int, Name], str]:
    """What `parse` needs to find media by name in a folder; a name that leaves the folder is refused."""

    def locate(_number: int, name: Name) -> str:
        return LISTED.join(map(one, (name,) if isinstance(name, str) else name))

    def one(name: str) -> str:
        plain = without_scheme(name)
        plain = plain if storage.is_remote(plain) else str(PurePosixPath(plain))
        try:
            for spelling in other_spellings(plain):  # one of which may be the file that is opened
                join(root, spelling)
            return join(root, plain)
        except ValueError:
            raise ValueError(f"media path {name!r} leaves the media folder; give it relative to the folder") from None

    return locate


def names_in(raw: dict, where: str) -> list[tuple[MediaKind, Name]]:
    """The media that an object names: images first, then videos."""
    return [(kind, name) for kind in MEDIA_KINDS for name in _names(raw, kind, where)]


def _names(raw: dict, kind: MediaKind, where: str) -> list[Name]:
    value = raw.get(kind)
    if value is None:
        return []
    media: list[Any] = value if isinstance(value, list) else [value]
    if kind == "video" and isinstance(value, list) and all(_is_still(name) for name in value):
        media = [value]  # the frames of one clip
    names = [tuple(name) if kind == "video" and isinstance(name, list) else name for name in media]
    if not names or not all(_is_name(name) for name in names):
        raise InputError(f"{where}: {kind!r} must be a path or a list of paths, found {short(value)}")
    return names


def _is_still(name: Any) -> bool:
    return isinstance(name, str) and name.lower().endswith(STILLS)


def _is_name(name: Any) -> bool:
    if isinstance(name, tuple):
        return bool(name) and all(isinstance(part, str) and _is_name(part) for part in name)
    return isinstance(name, str) and bool(name) and not _UNFIT.search(name)


def short(value: Any) -> str:
    """What was found, for a message."""
    try:
        text = repr(value)
    except RecursionError:  # of a table or a shard, whose readers allow more levels than JSON's
        return json_text.TOO_DEEP
    return text if len(text) <= 200 else f"{text[:200]}..."


def _turns(raw: dict, where: str) -> tuple[str, list[Turn]]:
    """What a leading system turn says, and the exchanges."""
    said = raw.get("conversations")
    if not isinstance(said, list) or not said:
        raise InputError(f"{where}: no 'conversations' list; this is not the LLaVA format")
    messages = []
    for message in said:
        role = ROLES.get(str(message.get("from", message.get("role")))) if isinstance(message, dict) else None
        text = message.get("value", message.get("content")) if role else None
        if role == "assistant" and isinstance(text, int | float) and not isinstance(text, bool) and math.isfinite(text):
            text = str(text)  # counts
        if isinstance(message, dict) and message.get("from", message.get("role")) in TOOL_ROLES:
            raise InputError(
                f"{where}: a turn of the role {message.get('from', message.get('role'))!r}; calls of tools are not "
                "read, only human, gpt and a leading system turn"
            )
        if role is None or not isinstance(text, str):
            raise InputError(
                f"{where}: a turn must be {{'from': 'human'|'gpt', 'value': text}}, found {short(message)}"
            )
        if LONE_SURROGATE.search(text):
            raise InputError(f"{where}: a turn holds half a character (a lone surrogate): {short(text)}")
        messages.append((role, text))
    system = messages.pop(0)[1].strip() if messages[0][0] == "system" else ""
    if any(raw.get(kind) is not None for kind in MEDIA_KINDS) and any(one in system for one in PLACEHOLDERS):
        raise InputError(f"{where}: a system turn holds a placeholder; only questions may")
    if messages and messages[0][0] == "assistant":  # the format's readers drop a leading answer
        messages = messages[1:]
    roles = [role for role, _ in messages]
    if len(roles) < 2 or len(roles) % 2 or roles != ["user", "assistant"] * (len(roles) // 2):
        raise InputError(
            f"{where}: turns must alternate human, gpt and end with gpt; found {', '.join(roles[:8]) or 'none'}"
        )
    types = raw.get("types") or [raw.get("type", "")] * (len(messages) // 2)
    if not isinstance(types, list) or len(types) != len(messages) // 2:
        count = len(types) if isinstance(types, list) else short(types)
        raise InputError(f"{where}: {count} 'types' for {len(messages) // 2} questions; give one each")
    return system, [Turn(messages[2 * i][1], messages[2 * i + 1][1], str(types[i])) for i in range(len(types))]


def _span(raw: dict, where: str) -> tuple[float, float] | None:
    bounds: dict[str, float] = {"start": 0.0, "end": math.inf}
    given = {key: raw[key] for key in bounds if raw.get(key) is not None}
    for key, value in given.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e9:
            raise InputError(f"{where}: {key!r} must be seconds from the clip's start, found {short(value)}")
        bounds[key] = float(value)
    if not bounds["start"] < bounds["end"]:
        raise InputError(f"{where}: 'end' {bounds['end']:g} does not come after 'start' {bounds['start']:g}")
    return (bounds["start"], bounds["end"]) if given else None


def _place(
    turns: list[Turn], media: Sequence[tuple[MediaKind, str]], where: str
) -> tuple[list[tuple[MediaKind, str]], tuple[Turn, ...]]:
    """One placeholder per medium, and the media in their order.

    Missing ones go before the first question; a single one moves to the front of its question. `<image>` and `<video>`
    are both accepted for either kind; where there are as many of each as of its kind, they say where each medium goes.

    In a record without media they are text like any other, as in a question about HTML, unless they stand where a
    medium's would: before the first word, at a line's end, or several times.
    """
    media = list(media)
    if not media:
        if tag := next(filter(None, (_TAGGED.search(turn.question) for turn in turns)), None):
            kind = "video" if (tag[1] or "").lower() == "video" else "image"
            raise InputError(
                f"{where}: {short(tag[0])} in a question is not read; name the file under {kind!r}, with <{kind}> in "
                "the text"
            )
        placeholder = next(filter(None, (_stands_for_media(turn.question) for turn in turns)), None)
        if placeholder is not None:
            raise InputError(
                f"{where}: a placeholder but neither 'image' nor 'video' ({placeholder}); name the file that it stands "
                "for under one of these keys"
            )
        return media, tuple(turns)
    shown = re.findall("|".join(PLACEHOLDERS), "\n".join(turn.question for turn in turns))
    if any("<image>" in turn.answer for turn in turns):
        raise InputError(f"{where}: an answer holds the placeholder <image>; only questions may")
    if len(shown) not in (0, len(media)):
        raise InputError(f"{where}: {len(shown)} placeholders for {len(media)} media; give one each, or none")
    if not shown or len(media) == 1:
        first = next((i for i, turn in enumerate(turns) if any(one in turn.question for one in PLACEHOLDERS)), 0)
        stripped = [dataclasses.replace(t, question=_without_placeholders(t.question)) for t in turns]
        lead = "".join("<image>\n" for _ in media)
        stripped[first] = dataclasses.replace(stripped[first], question=lead + stripped[first].question)
        return media, tuple(stripped)
    if sorted(shown) == sorted(f"<{kind}>" for kind, _ in media):
        queues = {kind: iter([medium for medium in media if medium[0] == kind]) for kind in MEDIA_KINDS}
        media = [next(queues["image" if placeholder == "<image>" else "video"]) for placeholder in shown]
    return media, tuple(dataclasses.replace(t, question=t.question.replace("<video>", "<image>")) for t in turns)


def _stands_for_media(question: str) -> str | None:
    """A placeholder that stands where a medium's would, in a question without media."""
    if match := _LEADS.match(question) or _ENDS.search(question) or _OF_MODELS.search(question):
        return match[0].strip() if match.re is _OF_MODELS else match[1]
    if _HTML.search(question):
        return None
    if match := _AT_LINE_END.search(question):
        return match[1]
    return next((one for one in PLACEHOLDERS if question.count(one) > 1), None)


def _without_placeholders(question: str) -> str:
    for placeholder in PLACEHOLDERS:
        question = question.replace(placeholder, "")
    return question.strip()
