"""JSON for people: other scripts as they are."""

import json
import re
from typing import Any

_HALF = re.compile("[\ud800-\udfff]")  # of a character, as a file's name may hold; UTF-8 cannot


def readable(value: Any, *, indent: int | None = None) -> str:
    """JSON text that UTF-8 can encode: characters stand for themselves, halves of characters as escapes."""
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    return _HALF.sub(lambda half: f"\\u{ord(half[0]):04x}", text)
