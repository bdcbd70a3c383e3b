"""Finds the media that a record names, and keys that look like media but are not read.

Read: `image`, `video`, `images`, `videos`, each a name or a list, a name also as {"path": ...} or {"url": ...}; where
there is none of these, `video_id` and `video_name`, the clip with this id in the media folder.
"""

import difflib
import functools
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from vlvm_jax.data.media_names import ENDINGS
from vlvm_jax.data.record import STILLS, MediaKind, short
from vlvm_jax.errors import InputError

READ: dict[str, MediaKind] = {"image": "image", "images": "image", "video": "video", "videos": "video"}
IDS = ("video_name", "video_id")  # in the order in which they are looked up
SPAN_KEYS = (("start", "video_start"), ("end", "video_end"))
SOUND = (".wav", ".mp3", ".flac", ".m4a", ".ogg", ".opus", ".aac")
# Endings of media, whatever the key. Without ".ts", which source files have too: it says so under a media key alone.
_PICTURES = (*(set(ENDINGS) - {".ts"}), *STILLS, ".tif", ".tiff", ".heic", ".ogv", ".vob")
_SUFFIXES = (*_PICTURES, *SOUND)
_PATH_KEYS = ("path", "url", "file", "file_name", "filename")  # of a name that is an object
_THINGS = (
    "video",
    "videos",
    "clip",
    "clips",
    "movie",
    "vid",
    "image",
    "images",
    "img",
    "imgs",
    "picture",
    "pictures",
    "photo",
    "photos",
    "frame",
    "frames",
    "gif",
    "media",
    "medium",
    "visual",
    "visuals",
    "audio",
    "audios",
    "sound",
    "speech",
)
_TAILS = (
    "",
    "path",
    "paths",
    "file",
    "files",
    "filename",
    "filenames",
    "filepath",
    "url",
    "urls",
    "uri",
    "id",
    "ids",
    "uid",
    "name",
    "names",
    "link",
    "dir",
    "folder",
    "list",
)
_WORDS = {"movie", "sound", "speech", "medium", "visual", "visuals"}  # alone, as likely a text's topic
_KNOWN = {thing + tail for thing in _THINGS for tail in _TAILS} - _WORDS | {"youtubeid", "ytid", "quid"}
_KNOWN |= {ending.removeprefix(".") for ending in _SUFFIXES} - {"mov"}  # as likely a word or a number
_IDENTIFIES = re.compile("(id|ids|uid|name|names)$")  # of keys whose value may be a number
_SOUNDS = ("audio", "audios", "sound", "speech", *(ending.removeprefix(".") for ending in SOUND))

_SPANS = {"begin", "span", "interval", "segment", "segments", "timestamp", "timestamps", "timespan", "timerange"} | {
    thing.format(end)
    for end in ("start", "end")
    for thing in ("{}time", "time{}", "clip{}", "{}sec", "{}seconds", "{}s")
}
_KINDS = {f"{thing}{plural}" for thing in ("image", "video", "clip", "movie") for plural in ("", "s")}  # in other keys
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+")
_LINK_KEYS = {"url", "urls", "uri", "src", "link", "links", "href"}
_CLIP_SITES = re.compile(r"(https?://)?([\w-]+\.)?(youtube\.com|youtu\.be|youtube-nocookie\.com|vimeo\.com)/\S+", re.I)
_PATH = re.compile(r"\s*[^\s/\\]*[/\\]\S*\s*")
_LINK = re.compile(r"https?://\S+", re.I)
_TURN_TEXT = frozenset({"from", "role", "value", "content", "text", "name", "reasoning_content"})

ClipOf = Callable[[str], str | None]


def is_empty(value: Any) -> bool:
    """Whether a value says nothing: null, an empty text, list or object."""
    return value is None or (isinstance(value, str | list | tuple | dict) and not value)


def read(raw: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The values of the media keys of a record, under `image` and `video`. `record.parse` checks them.

    Raises:
      InputError: a kind is under both of its keys, with different values; or a name holds bytes.
    """
    media: dict[str, Any] = {}
    for key, kind in READ.items():
        value = raw.get(key)
        if is_empty(value):  # tables fill what is absent with empty values
            continue
        value = _plain(value, key, where)
        if kind in media and as_list(media[kind]) != as_list(value):
            raise InputError(f"{where}: {kind!r} and {key!r} name different media; keep one of the keys")
        media.setdefault(kind, value)
    return media


def as_list(value: Any) -> list:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def _plain(value: Any, key: str, where: str) -> Any:
    """A value in which objects that hold a name are replaced by the name."""
    if isinstance(value, list):
        return [_plain(item, key, where) for item in value]
    return name_in(value, key, where) if isinstance(value, dict) else value


def name_in(value: Mapping[str, Any], key: str, where: str) -> Any:
    """The name in an object such as {"path": ...}.

    Raises:
      InputError: there is none, or several that differ.
    """
    names = {name: value[name] for name in _PATH_KEYS if not is_empty(value.get(name))}
    if not names:
        what = "holds bytes" if not is_empty(value.get("bytes")) else "has no 'path'"
        raise InputError(
            f"{where}: {key!r} {what}, found {short(dict(value))}; give the name of a file in the media folder"
        )
    if len(set(map(str, names.values()))) > 1:
        raise InputError(f"{where}: {key!r} has different {' and '.join(map(repr, names))}; keep one of them")
    return next(iter(names.values()))


def clip_by_id(raw: Mapping[str, Any], where: str, clip_of: ClipOf) -> str | None:
    """Name of the clip that `video_name` or `video_id` means; None if the record has neither.

    Raises:
      InputError: the media folder has no such clip.
    """
    given = {key: raw[key] for key in IDS if not is_empty(raw.get(key))}
    for key, value in given.items():
        if isinstance(value, bool) or not isinstance(value, int | str):
            raise InputError(f"{where}: {key!r} must be a text or a whole number, found {short(value)}")
        if (name := clip_of(str(value))) is not None:
            return name
    if given:
        key, value = next(iter(given.items()))
        tried = f"video{value}.mp4" if str(value).isdigit() else f"v_{value}.mp4"
        raise InputError(
            f"{where}: {key!r} {value!r}: no clip of this id in the media folder (neither {value}.mp4 nor {tried}, nor "
            "with another ending); put it there, set media_root, or name the file under 'video'"
        )
    return None


def suspects(raw: Mapping[str, Any], text_keys: frozenset[str] = frozenset()) -> list[str]:
    """Keys that look like media but are not read: by name, by a typo in one, or by a value that ends like a medium.

    Args:
      text_keys: keys of the record's format that hold text, which are not looked at.
    """
    return [
        key
        for key, value in raw.items()
        if key not in READ and key not in text_keys and not is_empty(value) and _looks_like_media(str(key), value)
    ]


def check_none(raw: Mapping[str, Any], where: str, text_keys: frozenset[str]) -> None:
    """Raises `InputError` if a record in which no media were found has a key that looks like media."""
    keys = suspects(raw, text_keys)
    keys += [key for key, value in raw.items() if key not in text_keys and _may_name_media(str(key), value)]
    if not keys:
        return
    key = keys[0]
    if _folded(key) in _SOUNDS or (any(_texts(raw[key], SOUND)) and not any(_texts(raw[key], _PICTURES))):
        raise InputError(
            f"{where}: {key!r} holds sound, which is not read here; a record needs a clip under 'video' or an image "
            f"under 'image', or must be text alone without {key!r}"
        )
    raise InputError(
        f"{where}: {key!r} looks like media, but is no key that is read; did you mean {meant(key, raw[key])!r}? "
        "(a record of text alone must not have it)"
    )


def check_turns(said: Any, where: str, has_media: bool) -> None:
    """Raises `InputError` if a turn has media of its own, or is not to be trained on; both are read of records alone.

    Args:
      has_media: whether the record has media, beside which a turn's key that merely looks like media is no fault.
    """
    for turn in said if isinstance(said, list) else ():
        if not isinstance(turn, dict):
            continue
        key = next((key for key in ("loss", "weight") if turn.get(key) is not None and not turn[key]), None)
        if key is not None and turn.get("from", turn.get("role")) in ("gpt", "assistant"):
            raise InputError(
                f"{where}: {key!r} {turn[key]!r} of an answer is not read, all answers are trained on; leave the key "
                "out, or end the record before this turn"
            )
        keys = [key for key in READ if not is_empty(turn.get(key))]
        keys += [] if has_media else suspects(turn, _TURN_TEXT)
        if keys:
            raise InputError(
                f"{where}: {keys[0]!r} inside a turn is not read; name all media of the record under "
                f"{meant(keys[0], turn[keys[0]])!r} beside its turns"
            )


def _may_name_media(key: str, value: Any) -> bool:
    """Whether a key of a record without media has "video" or the like among its words, or holds a link to a clip.

    A key that describes a medium ("video_category") names none, unless its value is a path.
    """
    words = set(_words(key))
    texts = [text for text in (value if isinstance(value, list) else [value]) if isinstance(text, str)]
    if isinstance(value, str | list) and value and len(words) > 1 and words & _KINDS:
        return not _describes(key) or any(map(_PATH.fullmatch, texts))
    pattern = _LINK if words & _LINK_KEYS else _CLIP_SITES
    return any(pattern.fullmatch(text.strip()) for text in texts)


def _describes(key: str) -> bool:
    """Whether a key is of a property of a medium: its last word is neither the medium nor where it is."""
    *others, last = _words(key) or [""]
    return bool(_KINDS & set(others)) and len(last) > 2 and last not in {*_KINDS, *_THINGS, *_TAILS, *_LINK_KEYS}


def _words(key: str) -> list[str]:
    return [word.lower() for word in _WORD.findall(key)]


def meant(key: str, value: Any = None) -> str:
    """The media key that is probably meant by another key."""
    folded = _folded(key)
    if close := _close(folded):
        return close
    words = set(_words(key))
    images = (
        folded.startswith(("im", "pic", "photo"))
        or bool(words & {"image", "images"})
        or folded in {one.removeprefix(".") for one in STILLS}
    )
    stills = [text.lower().endswith(STILLS) for text in _texts(value, _SUFFIXES)]
    kind = "image" if images or (stills and all(stills) and len(stills) == 1) else "video"
    return kind


def note(raw: Mapping[str, Any], notes: Counter, text_keys: frozenset[str]) -> None:
    """Counts the keys of a record with media that look like media but are not read."""
    for key in suspects(raw, text_keys):
        if key not in IDS:
            notes[repr(key)] += 1
    notes.update(map(repr, spans(raw, text_keys)))


def spans(raw: Mapping[str, Any], text_keys: frozenset[str] = frozenset()) -> list[str]:
    """Keys that look like a part of the clip, but are not read."""
    return [
        key
        for key, value in raw.items()
        if key not in text_keys and not is_empty(value) and _folded(str(key)) in _SPANS
    ]


def _looks_like_media(key: str, value: Any) -> bool:
    if any(True for _ in _texts(value, _SUFFIXES)):
        return True
    if isinstance(value, bool):
        return False
    folded = _folded(key)
    if isinstance(value, int | float):
        return folded in _KNOWN and bool(_IDENTIFIES.search(folded))
    return folded in _KNOWN or (_close(folded) is not None and not _describes(key))


@functools.lru_cache(maxsize=4096)
def _close(key: str) -> str | None:
    """The media key that this one misspells: the same letters in another order, or most of them."""
    swapped = (name for name in READ if sorted(name) == sorted(key))
    return next(swapped, None) or next(iter(difflib.get_close_matches(key, READ, 1, 0.75)), None)


def _texts(value: Any, endings: tuple[str, ...]) -> Iterator[str]:
    """Texts at any depth of a value that look like names with these endings: on one line, no longer than a path."""
    if isinstance(value, str):
        plain = re.split(r"[?#]", value.strip(), maxsplit=1)[0] if "://" in value else value.strip()
        if len(plain) <= 1024 and "\n" not in plain and plain.lower().endswith(endings):
            yield plain
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _texts(item, endings)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item, endings)


@functools.lru_cache(maxsize=4096)
def _folded(key: str) -> str:
    return re.sub(r"[^a-z0-9]", "", key.lower())
