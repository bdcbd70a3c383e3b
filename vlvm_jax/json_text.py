"""JSON text, read with one kind of error and written for people: characters of every script stand for themselves."""

import json
import re
from collections.abc import Callable
from typing import Any

MAX_DEPTH = 100  # of objects and lists inside one another; docs/security.md states it
TOO_DEEP = f"nested more than {MAX_DEPTH} levels deep"

LONE_SURROGATE = re.compile("[\ud800-\udfff]")  # half a character: JSON and file names may hold it, UTF-8 cannot
_ESCAPED = re.compile("[\x7f-\x9f\ud800-\udfff]")  # these, and the control characters that JSON allows


def loads(text: str | bytes, object_pairs_hook: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
    """The value of a JSON text. What it gives can be printed and written again without deep recursion.

    Args:
      object_pairs_hook: as of `json.loads`.

    Raises:
      ValueError: the text is not JSON, is not UTF-8, or is nested more than `MAX_DEPTH` levels deep.
    """
    try:
        return check_depth(json.loads(text, object_pairs_hook=object_pairs_hook), text)
    except RecursionError:
        raise ValueError(TOO_DEEP) from None


def check_depth(value: Any, text: str | bytes) -> Any:
    """The value itself.

    Args:
      text: what it was read from, whose brackets tell at once of most values that they are not deep.

    Raises:
      ValueError: it is nested more than `MAX_DEPTH` levels deep.
    """
    brackets = (b"[", b"{") if isinstance(text, bytes) else ("[", "{")
    if sum(map(text.count, brackets)) <= MAX_DEPTH:  # pyright: ignore[reportArgumentType]
        return value
    level, depth = [value], 0
    while level := [one for one in level if isinstance(one, dict | list)]:
        depth += 1
        if depth > MAX_DEPTH:
            raise ValueError(TOO_DEEP)
        level = [item for one in level for item in (one.values() if isinstance(one, dict) else one)]
    return value


def readable(value: Any, *, indent: int | None = None) -> str:
    """JSON text that UTF-8 can encode: lone surrogates and control characters are escaped, others stand as they are."""
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    return _ESCAPED.sub(lambda match: f"\\u{ord(match[0]):04x}", text)
