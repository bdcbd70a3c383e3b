"""Annotation formats: how a record of each becomes an object in LLaVA's format (see `records`).

A record has the first format of this table whose keys it has. A file has the format of its first record that can be
used.

llava          {"conversations": [{"from", "value"}]}
messages       {"messages": [{"role", "content": text or [{"type": "image"|"video"|"text", ...}]}]}, of HF and ms-swift
videochat2     {"QA": [{"i", "q", "a"}], "start", "end"}, of VideoChat2-IT
video_chatgpt  {"video_id", "q", "a"}, of Video-ChatGPT-100K: the clip of this name in the media folder
vcgbench       {"video_name", "Q", "A"}, of its benchmark: generic_qa.json, temporal_qa.json
vcgbench_consistency  {"video_name", "Q1", "Q2", "A"}, consistency_qa.json: two questions with one answer
qa             {"question", "answer"}
query_response {"query", "response", "history": [[question, answer], ...]}, of ms-swift
alpaca         {"instruction", "input", "output", "history"}, of Alpaca and LLaMA-Factory

The media of each are under the keys of `media_keys`; `system` is the text of a system turn.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from vlvm_jax.data.media_names import ENDINGS
from vlvm_jax.data.record import check_object, short
from vlvm_jax.data.sources import media_keys, options
from vlvm_jax.data.sources.media_keys import ClipOf
from vlvm_jax.data.sources.messages import from_messages
from vlvm_jax.errors import InputError

# The keys that a record of each format has, in the order in which the formats are tried.
KEYS = {
    "llava": ("conversations",),
    "messages": ("messages",),
    "videochat2": ("QA",),
    "video_chatgpt": ("video_id", "q", "a"),
    "vcgbench": ("video_name", "Q", "A"),
    "vcgbench_consistency": ("video_name", "Q1", "Q2", "A"),
    "qa": ("question", "answer"),
    "query_response": ("query", "response"),
    "alpaca": ("instruction", "output"),
}
CLIPS_BY_ID = ("video_chatgpt", "vcgbench", "vcgbench_consistency")  # never by a path
KEPT = ("id", "type", "types")
_SOMETIMES = ("system", "history", "input")  # text that a record may have in any format


def detect(raw: Any, where: str) -> str:
    """The format of a record.

    Raises:
      InputError: it is of none.
    """
    check_object(raw, where)
    for name, keys in KEYS.items():
        if all(key in raw for key in keys):
            return name
    raise InputError(
        f"{where}: no 'conversations' list; this is not the LLaVA format, nor has it 'messages', 'QA', "
        f"'video_id' with 'q' and 'a', 'video_name' with 'Q' and 'A', 'question' and 'answer', 'query' and 'response', "
        f"or 'instruction' and 'output'; its keys are {short(sorted(map(str, raw)))}"
    )


def to_llava(raw: Any, name: str, where: str, clip_of: ClipOf, notes: Counter | None = None) -> dict[str, Any]:
    """A record of a format as a LLaVA object; that object is checked where it is used.

    Args:
      name: of the format.
      clip_of: name of the clip in the media folder that has this id; None if there is none.
      notes: counts keys that look like media, or say how to sample them, but are not read.

    Raises:
      InputError: it is not of the format, it has options beside its questions, or no medium was found but some key
        looks like one.
    """
    check_object(raw, where)
    missing = [key for key in KEYS[name] if key not in raw]
    if missing and name == "llava":
        return raw  # `records.parse` refuses it
    if missing:
        raise InputError(f"{where}: no {missing[0]!r}, which a record of the format {name!r} has")
    if found := options.keys_in(raw):
        raise InputError(
            f"{where}: {found[0]!r} holds options, which are not shown to the model here; write them into the "
            f"question, and the right one into the answer, and leave {found[0]!r} out"
        )
    notes = Counter() if notes is None else notes
    text_keys = _text_keys(raw, name)
    said, media = _READERS[name](raw, where, notes) if name in _READERS else (None, media_keys.read(raw, where))
    if not media:
        media = _by_id(raw, name, where, clip_of)
    if name in ("llava", "messages"):
        turns = raw[KEYS[name][0]]
        media_keys.check_turns(turns if name == "llava" else _without_read_keys(turns), where, bool(media))
    if not media:
        media_keys.check_none(raw, where, text_keys)
    else:
        media_keys.note(raw, notes, text_keys)
    system = _system(raw, where)
    span = _span(raw, media, where)
    if (
        said is None
        and not system
        and media_keys.is_empty(raw.get("objects"))
        and _says_the_same(raw, {**media, **span})
    ):
        return raw
    said = raw["conversations"] if said is None else said
    _check_boxes(raw, said, where)
    if system and isinstance(said, list):
        said = _with_system(system, said, where)
    media = {key: value for key, value in media.items() if key not in ("start", "end")}
    kept = {key: raw[key] for key in KEPT if raw.get(key) is not None}
    return kept | media | span | {"conversations": said}


def _without_read_keys(messages: list[dict]) -> list[dict]:
    """Messages without their keys of media, which were read."""
    return [{key: value for key, value in one.items() if key not in media_keys.READ} for one in messages]


def _says_the_same(raw: dict[str, Any], read: Mapping[str, Any]) -> bool:
    """Whether a LLaVA object already has these values under its own keys."""
    return all(raw.get(key) == read.get(key) for key in ("image", "video", "start", "end"))


def _text_keys(raw: Mapping[str, Any], name: str) -> frozenset[str]:
    """Keys that hold a format's text, where the name of a file is no medium. A lone word in Alpaca's `input` may be."""
    lone = isinstance(raw.get("input"), str) and len(raw["input"].split()) == 1
    keys = {*KEYS[name], *_SOMETIMES} - {"video_id", "video_name"}
    return frozenset(keys - {"input"} if lone else keys)


def _by_id(raw: Mapping[str, Any], name: str, where: str, clip_of: ClipOf) -> dict[str, Any]:
    if name not in CLIPS_BY_ID:
        found = media_keys.clip_by_id(raw, where, clip_of)
        return {} if found is None else {"video": found}
    clip = str(raw[KEYS[name][0]])
    return {"video": clip_of(clip) or (clip if clip.lower().endswith(ENDINGS) else f"{clip}.mp4")}


def _span(raw: Mapping[str, Any], media: Mapping[str, Any], where: str) -> dict[str, Any]:
    """`start` and `end` of the record's clips, from the record or from the parts of its messages."""
    span = {}
    for keys in media_keys.SPAN_KEYS:
        given = [value for key in keys if (value := raw.get(key)) is not None]
        if keys[0] in media:
            given.append(media[keys[0]])
        if any(value != given[0] for value in given):
            raise InputError(f"{where}: different {' and '.join(map(repr, keys))}; keep one of them")
        if given:
            span[keys[0]] = given[0]
    return span


def _system(raw: Mapping[str, Any], where: str) -> str:
    value = raw.get("system")
    if media_keys.is_empty(value):
        return ""
    if not isinstance(value, str):
        raise InputError(f"{where}: 'system' must be a text, found {short(value)}")
    return value.strip()


def _check_boxes(raw: Mapping[str, Any], said: Any, where: str) -> None:
    """Refuses ms-swift's boxes, for which the text has only marks."""
    marks = [mark for mark in ("<bbox>", "<ref-object>") if mark in repr(said)]
    if marks and not media_keys.is_empty(raw.get("objects")):
        raise InputError(
            f"{where}: 'objects' is not read, and the text has {marks[0]} for each of them; write the boxes and names "
            "into the text"
        )


def _with_system(system: str, said: list, where: str) -> list:
    first = said[0] if said and isinstance(said[0], dict) else {}
    if first.get("from", first.get("role")) == "system":
        if str(first.get("value", first.get("content"))).strip() != system:
            raise InputError(f"{where}: 'system' and a system turn say different things; keep one of them")
        return said
    return [{"from": "system", "value": system}, *said]


# --- what each format says ---------------------------------------------------------------------------------------

Said = tuple[list[dict[str, Any]], dict[str, Any]]  # turns and media


def _exchange(question: Any, answer: Any) -> list[dict[str, Any]]:
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]


def _pairs(*keys: str) -> Callable[[Mapping[str, Any], str, Counter], Said]:
    """A reader of formats with these keys: those of the questions, then that of their answer."""

    def read(raw: Mapping[str, Any], where: str, _notes: Counter) -> Said:
        said = [turn for key in keys[:-1] for turn in _exchange(raw[key], raw[keys[-1]])]
        return said, media_keys.read(raw, where)

    return read


def _videochat2(raw: Mapping[str, Any], where: str, _notes: Counter) -> Said:
    """The first exchange's instruction goes before its question; captions have an instruction alone."""
    pairs = raw["QA"]
    if not isinstance(pairs, list) or not all(isinstance(pair, dict) and {"q", "a"} <= pair.keys() for pair in pairs):
        raise InputError(f"{where}: 'QA' must be a list of {{'i', 'q', 'a'}}, found {short(pairs)}")
    turns = []
    for number, pair in enumerate(pairs):
        instruction, question = pair.get("i") or "", pair["q"] or ""
        if instruction and question and number == 0:
            question = f"{instruction}\n{question}"
        turns += _exchange(question or instruction, pair["a"])
    return turns, media_keys.read(raw, where)


def _query_response(raw: Mapping[str, Any], where: str, _notes: Counter) -> Said:
    return _history(raw, where) + _exchange(raw["query"], raw["response"]), media_keys.read(raw, where)


def _alpaca(raw: Mapping[str, Any], where: str, _notes: Counter) -> Said:
    """The input follows its instruction on a line of its own."""
    question, more = raw["instruction"], raw.get("input")
    if not media_keys.is_empty(more):
        if not isinstance(more, str) or not isinstance(question, str):
            raise InputError(f"{where}: 'instruction' and 'input' must be texts, found {short(more)}")
        question = f"{question}\n{more}" if question else more
    return _history(raw, where) + _exchange(question, raw["output"]), media_keys.read(raw, where)


def _history(raw: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
    """Turns of [[question, answer], ...]."""
    pairs = raw.get("history")
    if media_keys.is_empty(pairs):
        return []
    if not isinstance(pairs, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        raise InputError(f"{where}: 'history' must be a list of [question, answer], found {short(pairs)}")
    return [turn for pair in pairs for turn in _exchange(*pair)]


_READERS: Mapping[str, Callable[[Mapping[str, Any], str, Counter], Said]] = {
    "messages": from_messages,
    "videochat2": _videochat2,
    "video_chatgpt": _pairs("q", "a"),
    "vcgbench": _pairs("Q", "A"),
    "vcgbench_consistency": _pairs("Q1", "Q2", "A"),
    "qa": _pairs("question", "answer"),
    "query_response": _query_response,
    "alpaca": _alpaca,
}
