"""Reads files of JSON records: a JSON list, or one object per line (JSON Lines). The only reader of such files."""

import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from vlvm_jax import json_text, storage
from vlvm_jax.errors import InputError

_SPACE = re.compile(r"[ \t\n\r]*")
_UTF16 = (b"\xff\xfe", b"\xfe\xff")


class Entry(NamedTuple):
    """One record of a file.

    Attributes:
      index: number of the record, from 0.
      text: its JSON.
      value: what the JSON says; None where it does not parse.
      where: `file: record index`, for messages.
      span: bytes of the file from and to which the text reaches.
      line: number of the line, from 1; 0 in a JSON list.
      error: why the line is not JSON; "" where it is.
    """

    index: int
    text: str
    value: Any
    where: str
    span: tuple[int, int]
    line: int = 0
    error: str = ""


def read(path: str, expected: str = "no such file; give a JSON list or JSONL") -> Iterator[Entry]:
    """Records of a file, local or gs://, in order.

    Args:
      expected: what the message says of a file that does not exist.

    Raises:
      InputError: the file does not exist, is not UTF-8, or is neither a JSON list nor JSON Lines.
    """
    try:
        data = storage.read_bytes(path)
    except (FileNotFoundError, IsADirectoryError):
        raise InputError(f"{path}: {expected}") from None
    return parse(data, path)


def parse(data: bytes, path: str) -> Iterator[Entry]:
    """Records of a file's bytes.

    The layout is detected from the ending, in any letter case. A file that has the other layout beyond doubt is read
    as what it is: a whole JSON list of objects under `.jsonl`, several lines of one object each under another ending.
    A line that is not JSON is an `Entry` with its `error`. A JSON list is read as far as it is valid, and then refused.

    Raises:
      InputError: as `read`.
    """
    text, start = decode(data, path)
    as_lines = path.lower().endswith(".jsonl")
    begins_list = re.match(r"[ \t\n\r]*\[", text) is not None
    if as_lines and begins_list:
        as_lines = not _is_list_of_objects(text)
    elif not as_lines and not begins_list:
        as_lines = _is_lines_of_objects(text)
    yield from _lines(text, path, start) if as_lines else _list(text, path, start)


def decode(data: bytes, path: str) -> tuple[str, int]:
    """Text of UTF-8 bytes, and the length in bytes of the byte order mark before it.

    Raises:
      InputError: the bytes are not UTF-8; names the line and the byte in it.
    """
    if data.startswith(_UTF16):
        raise InputError(f"{path}: UTF-16, expected UTF-8; convert it, as with `iconv -f UTF-16 -t UTF-8`")
    start = 3 if data.startswith(b"\xef\xbb\xbf") else 0
    try:
        return data[start:].decode("utf-8"), start
    except UnicodeDecodeError as error:
        place = start + error.start
        line = data.count(b"\n", 0, place) + 1
        column = place - data.rfind(b"\n", 0, place)
        raise InputError(
            f"{path}: line {line}, byte {column}: 0x{data[place]:02x} is not UTF-8; convert the file, as with "
            "`iconv -f LATIN1 -t UTF-8` if it is Latin-1"
        ) from None


def loads(text: str | bytes) -> tuple[Any, str]:
    """The value of a JSON text, and the error where it has none."""
    try:
        return json_text.loads(text), ""
    except ValueError as error:
        return None, " ".join(str(error).split())


def _is_list_of_objects(text: str) -> bool:
    found, _ = loads(text)
    return isinstance(found, list) and bool(found) and isinstance(found[0], dict)


def _is_lines_of_objects(text: str) -> bool:
    lines = [line for line in text.split("\n") if line.strip()]
    return len(lines) > 1 and all(line.lstrip().startswith("{") for line in lines) and isinstance(
        loads(lines[0])[0], dict
    )  # fmt: skip


def _lines(text: str, path: str, start: int) -> Iterator[Entry]:
    index = 0
    for number, line in enumerate(text.split("\n"), start=1):
        stop = start + len(line.encode())
        if line.strip():
            value, error = loads(line)
            yield Entry(index, line, value, f"{path}: record {index}", (start, stop), number, error)
            index += 1
        start = stop + 1


def _list(text: str, path: str, start: int) -> Iterator[Entry]:
    try:
        if not re.match(r"[ \t\n\r]*\[", text):
            found = type(json_text.loads(text)).__name__
            raise InputError(f"{path}: expected a JSON list of records, found {found}")
        done = 0
        for index, (first, last, value) in enumerate(_items(text)):
            start += len(text[done:first].encode())
            stop = start + len(text[first:last].encode())
            yield Entry(index, text[first:last], value, f"{path}: record {index}", (start, stop))
            start, done = stop, last
    except (ValueError, RecursionError) as error:
        reason = json_text.TOO_DEEP if isinstance(error, RecursionError) else " ".join(str(error).split())
        raise InputError(f"{path}: not JSON ({reason}); one object per line needs the ending .jsonl") from None


def _items(text: str) -> Iterator[tuple[int, int, Any]]:
    """Where the items of a JSON list begin and end, and their values, one at a time."""
    decoder = json.JSONDecoder()

    def after(position: int) -> int:
        found = _SPACE.match(text, position)
        return found.end() if found else position

    at = after(text.index("[") + 1)
    while not text.startswith("]", at):
        value, end = decoder.raw_decode(text, at)
        yield at, end, json_text.check_depth(value, text[at:end])
        at = after(end)
        if text.startswith(",", at):
            at = after(at + 1)
            if text.startswith("]", at):
                raise json.JSONDecodeError("Expecting value", text, at)
        elif not text.startswith("]", at):
            raise json.JSONDecodeError("Expecting ',' delimiter", text, at)
    if (end := after(at + 1)) != len(text):
        raise json.JSONDecodeError("Extra data", text, end)
