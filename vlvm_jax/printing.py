"""What reaches a terminal: names and texts of other people as they are, but for control characters.

A name in a data set, a message of a checkpoint or an answer of a model may hold an escape sequence, which would move
the cursor, change the window's title or what is typed next. Everything the commands print goes through here.
"""

import re
import sys
from typing import Any

from rich.console import Console
from rich.text import Text

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # all but tab and newline
_ALL_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def printable(text: str) -> str:
    r"""The text with control characters as escapes, `\x1b`; tabs and newlines stay."""
    return _CONTROL.sub(_escape, text)


def one_line(text: str) -> str:
    r"""The same on one line: tabs and newlines as escapes too."""
    return _ALL_CONTROL.sub(_escape, text)


def _escape(match: re.Match) -> str:
    return match[0].encode("unicode_escape").decode()


def write(text: str, end: str = "\n") -> None:
    """Writes a result to stdout: printable on a terminal, unchanged into a file or a pipe."""
    print(printable(text) if sys.stdout.isatty() else text, end=end, flush=True)


class PlainConsole(Console):
    """A console to which brackets and colons are text, and control characters too."""

    def __init__(self, **options: Any):
        super().__init__(highlight=False, markup=False, emoji=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(printable(text), **options)
