"""Messages of Hugging Face, TRL and ms-swift, whose content is text or a list of parts, some of which are media.

Example:
    {"messages": [{"role": "user", "content": [{"type": "video", "video": "a.mp4"}, {"type": "text", "text": "Why?"}]},
                  {"role": "assistant", "content": "Because it can."}]}
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from vlvm_jax.data.record import STILLS, short
from vlvm_jax.data.sources import media_keys
from vlvm_jax.data.sources.formats._format import Format, Turns
from vlvm_jax.errors import InputError

_OF_PARTS = {"type", "path", "url", "image", "video", "image_url", "video_url", "bytes"}
_SPAN = ("video_start", "video_end")


def _parse(raw: Mapping[str, Any], where: str, notes: Counter) -> tuple[Turns, dict[str, Any]]:
    """Reads a record's turns and media. If a part has a span, it is among the media as `start` and `end`.

    Args:
      notes: counts keys of parts that are not read, such as `fps`.

    Raises:
      InputError: the messages are not of the format, or clips of the record have different spans.
    """
    messages = raw["messages"]
    if not isinstance(messages, list) or not all(isinstance(m, dict) and "content" in m for m in messages):
        raise InputError(f"{where}: 'messages' must be a list of {{'role', 'content'}}, found {short(messages)}")
    beside = {kind: media_keys.as_list(value) for kind, value in media_keys.read(raw, where).items()}
    parts = _Parts({kind: iter(names) for kind, names in beside.items()}, where)
    turns = []
    for message in messages:
        content = _with_own_media(message, where)
        if isinstance(content, list):
            content = "".join(map(parts.text, content))
        turns.append({"from": message.get("role"), "value": content})
    files = parts.files
    for kind, names in parts.beside.items():
        if files[kind] != beside[kind]:  # else the parts name the same files
            files[kind] += names  # those that no part stands for
    notes.update({f"{key!r} in a part of a message": 1 for key in parts.unread})
    media: dict[str, Any] = {kind: names for kind, names in files.items() if names}
    stills = all(isinstance(name, str) and name.lower().endswith(STILLS) for name in files["video"])
    return turns, media | _span(parts.spans, 1 if stills else len(files["video"]), where)


def _with_own_media(message: Mapping[str, Any], where: str) -> Any:
    """The content of a message; as parts, if the message has media under keys of its own, as Ollama's have.

    They stand before the text, or where it has a placeholder for each.

    Raises:
      InputError: it is not clear where they stand.
    """
    content = message["content"]
    own = media_keys.read({key: value for key, value in message.items() if key in media_keys.READ}, where)
    if not own:
        return content
    key = next(key for key in media_keys.READ if not media_keys.is_empty(message.get(key)))
    files = [{"type": kind, kind: name} for kind in ("image", "video") for name in _own(own.get(kind), kind)]
    if not isinstance(content, str) or message.get("role") not in ("user", "human"):
        raise InputError(
            f"{where}: {key!r} inside a message that is no user's, or whose content is no text; name the media under "
            f"{media_keys.READ[key]!r} beside the messages"
        )
    pieces = re.split("(<image>|<video>)", content)
    shown = pieces[1::2]
    if not shown:
        return [*files, {"type": "text", "text": content}]
    if [f"<{part['type']}>" for part in files] != shown:
        raise InputError(
            f"{where}: {key!r} inside a message names {len(files)} media, its text has the placeholders "
            f"{' '.join(shown)}; give one each, in order, or none"
        )
    media = iter(files)
    return [next(media) if at % 2 else {"type": "text", "text": piece} for at, piece in enumerate(pieces)]


def _own(value: Any, kind: str) -> list:
    """Media of one kind of a message; a list of images under `video` is one clip."""
    names = media_keys.as_list(value)
    stills = all(isinstance(name, str) and name.lower().endswith(STILLS) for name in names)
    return [names] if kind == "video" and isinstance(value, list) and stills else names


class _Parts:
    """Reads the parts of messages, and collects the media they name."""

    def __init__(self, beside: Mapping[str, Iterator], where: str):
        self.beside, self.where = beside, where
        self.files: dict[str, list] = {"image": [], "video": []}
        self.spans: list[tuple[Any, Any]] = []  # of each clip with a part
        self.unread: set[str] = set()

    def text(self, part: Any) -> str:
        """Text of a part. A medium's is its placeholder; its name is in the part or under the record's media keys."""
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text" and isinstance(part.get("text"), str):
            return part["text"]
        medium = next((one for one in self.files if kind in (one, f"{one}_url")), None)
        if medium is None:
            raise InputError(
                f"{self.where}: a part of a message must have the type image, video or text, found {short(part)}"
            )
        name = next((part[key] for key in (kind, medium, "path", "url") if part.get(key) is not None), None)
        if isinstance(name, dict):
            name = media_keys.name_in(name, str(kind), self.where)
        if name is None:
            name = next(self.beside.get(medium, iter(())), None)
        if name is None:
            raise InputError(f"{self.where}: a part of type {kind!r} names no file, nor do '{medium}s' beside it")
        self.files[medium].append(name)
        if medium == "video":
            self.spans.append((part.get(_SPAN[0]), part.get(_SPAN[1])))
        known = _OF_PARTS | set(_SPAN) if medium == "video" else _OF_PARTS
        self.unread |= {key for key in part.keys() - known if not media_keys.is_empty(part[key])}
        return f"<{medium}>\n"


def _span(spans: list[tuple[Any, Any]], clips: int, where: str) -> dict[str, Any]:
    """The one span of a record's clips."""
    given = [*spans, *[(None, None)] * (clips - len(spans))]  # a list of images is one clip
    if any(span != given[0] for span in given):
        raise InputError(
            f"{where}: clips with different 'video_start' and 'video_end'; a record has one span for all of its "
            "clips: give each span a record, or cut the clips"
        )
    start, end = given[0] if given else (None, None)
    return {key: value for key, value in (("start", start), ("end", end)) if value is not None}


def _without_media(raw: Mapping[str, Any]) -> Turns:
    """The messages without their media keys, which were read."""
    return [{key: value for key, value in one.items() if key not in media_keys.READ} for one in raw["messages"]]


FORMAT = Format(keys=("messages",), precedence=20, parse=_parse, lists=("messages",), checked_turns=_without_media)
