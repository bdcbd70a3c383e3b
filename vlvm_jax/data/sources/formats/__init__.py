"""Annotation formats, one file each: how a record of each becomes an object in LLaVA's format (see `record`).

Every module of this folder is a format, unless its name begins with "_". A record has the format of lowest `precedence`
whose keys it has. A file has the format of its first record that can be used.

The media of all formats are under the keys of `media_keys`; `system` is the text of a system turn.
"""

import importlib
import pkgutil
from collections import Counter
from collections.abc import Mapping
from typing import Any

from vlvm_jax.data.media_names import ENDINGS
from vlvm_jax.data.record import check_object, short
from vlvm_jax.data.sources import media_keys, options
from vlvm_jax.data.sources.formats._format import Format
from vlvm_jax.data.sources.media_keys import ClipOf
from vlvm_jax.errors import InputError


def _discover() -> dict[str, Format]:
    names = [module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_")]
    formats = {name: importlib.import_module(f"{__name__}.{name}").FORMAT for name in names}
    return dict(sorted(formats.items(), key=lambda item: item[1].precedence))


FORMATS: Mapping[str, Format] = _discover()  # by name, in the order of their precedence
KEPT = ("id", "type", "types")
_TEXTS = frozenset({"system"}.union(*(one.texts for one in FORMATS.values())))  # in records of any format


def detect(raw: Any, where: str) -> str:
    """The name of the format that a record has.

    Raises:
      InputError: it has none.
    """
    check_object(raw, where)
    for name, format in FORMATS.items():
        if format.matches(raw):
            return name
    *others, last = (_spelled(one.keys) for one in FORMATS.values() if one.parse is not None)
    raise InputError(
        f"{where}: no 'conversations' list; this is not the LLaVA format, nor has it {', '.join(others)}, or {last}; "
        f"its keys are {short(sorted(map(str, raw)))}"
    )


def _spelled(keys: tuple[str, ...]) -> str:
    """Keys for a message: 'a' and 'b', or 'a' with 'b' and 'c'."""
    *most, last = map(repr, keys)
    if len(most) > 1:
        most = [f"{most[0]} with {', '.join(most[1:])}"]
    return " and ".join([*most, last])


def to_llava(raw: Any, name: str, where: str, clip_of: ClipOf, notes: Counter | None = None) -> dict[str, Any]:
    """Converts a record to a LLaVA object, which is checked where it is used.

    Args:
      name: of the record's format.
      clip_of: returns the name of the clip in the media folder that has this id, or None.
      notes: counts keys that look like media, or say how to sample them, but are not read.

    Raises:
      InputError: it does not have the format, it has options beside its questions, or no medium was found but some key
        looks like one.
    """
    check_object(raw, where)
    format = FORMATS[name]
    missing = [key for key in format.keys if key not in raw]
    if missing and format.parse is None:
        return raw  # `record.parse` refuses it
    if missing:
        raise InputError(f"{where}: no {missing[0]!r}, which a record of the format {name!r} has")
    if option_keys := options.keys_in(raw):
        raise InputError(
            f"{where}: {option_keys[0]!r} holds options, which are not shown to the model here; write them into the "
            f"question, and the right one into the answer, and leave {option_keys[0]!r} out"
        )
    notes = Counter() if notes is None else notes
    text_keys = _text_keys(raw, format)
    said, media = (None, media_keys.read(raw, where)) if format.parse is None else format.parse(raw, where, notes)
    if not media:
        media = _by_id(raw, format, where, clip_of)
    if format.checked_turns is not None:
        media_keys.check_turns(format.checked_turns(raw), where, bool(media))
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


def _says_the_same(raw: dict[str, Any], read: Mapping[str, Any]) -> bool:
    """Whether a LLaVA object already has these values under its own keys."""
    return all(raw.get(key) == read.get(key) for key in ("image", "video", "start", "end"))


def _text_keys(raw: Mapping[str, Any], format: Format) -> frozenset[str]:
    """Keys that hold text, in which a file's name is no medium. A lone word in Alpaca's `input` may be one."""
    lone = isinstance(raw.get("input"), str) and len(raw["input"].split()) == 1
    keys = _TEXTS.union(format.keys).difference(media_keys.IDS)
    return keys - {"input"} if lone else keys


def _by_id(raw: Mapping[str, Any], format: Format, where: str, clip_of: ClipOf) -> dict[str, Any]:
    if not format.clip_by_id:
        clip = media_keys.clip_by_id(raw, where, clip_of)
        return {} if clip is None else {"video": clip}
    clip = str(raw[format.keys[0]])
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
