"""JSON that people read: characters of every script stand for themselves."""

import json
import re
from typing import Any

LONE_SURROGATE = re.compile("[\ud800-\udfff]")  # half a character: JSON and file names may hold it, UTF-8 cannot


def readable(value: Any, *, indent: int | None = None) -> str:
    """JSON text that UTF-8 can encode: characters stand for themselves, lone surrogates are escaped."""
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    return LONE_SURROGATE.sub(lambda half: f"\\u{ord(half[0]):04x}", text)
