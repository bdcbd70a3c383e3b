"""Reads files of JSON records: a JSON list, or one object per line (JSON Lines). The only reader of such files."""

import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from vlvm_jax import json_text, storage
from vlvm_jax.errors import InputError

_SPACE = re.compile(r"[ \t\n\r]*")
_LAST_COMMA = re.compile(r",[ \t\n\r]*([\]}])")
_MARK = b"\xef\xbb\xbf"  # byte order mark
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_UTF32 = (b"\xff\xfe\0\0", b"\0\0\xfe\xff")


class Entry(NamedTuple):
    """One record of a file.

    Attributes:
      index: number of the record, from 0.
      text: its JSON.
      value: the parsed JSON; None if it does not parse.
      where: `file: record index`, for messages.
      span: start and end of the text, in bytes of the file.
      line: number of the line, from 1; 0 in a JSON list.
      error: what is wrong with a line that is not JSON or not UTF-8, with its number, or with a record that has a key
        twice; "" if nothing is.
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
      expected: what the message says if the file does not exist.

    Raises:
      InputError: the file does not exist, is UTF-16, or is neither a JSON list nor JSON Lines.
    """
    try:
        data = storage.read_bytes(path)
    except (FileNotFoundError, IsADirectoryError):
        raise InputError(f"{path}: {expected}") from None
    return parse(data, path)


def parse(data: bytes, path: str) -> Iterator[Entry]:
    """Records of a file's bytes.

    The layout is detected from the ending, in any letter case. A file that clearly has the other layout is read as what
    it is: a complete JSON list of objects under `.jsonl`, several lines of one object each under another ending.
    A line that is not JSON, or not UTF-8, is an `Entry` with its `error`. A JSON list is read as far as it is valid,
    and then refused.

    Raises:
      InputError: as `read`.
    """
    _refuse_utf16(data, path)
    text = data.decode("utf-8-sig", errors="replace")  # to tell the layout
    as_lines = path.lower().endswith(".jsonl")
    begins_list = re.match(r"[ \t\n\r]*\[", text) is not None
    if as_lines and begins_list:
        as_lines = not _is_list_of_objects(text)
    elif not as_lines and not begins_list:
        as_lines = _is_lines_of_objects(text)
    yield from _lines(data, path) if as_lines else _list(*decode(data, path), path)


def decode(data: bytes, path: str) -> tuple[str, int]:
    """Text of UTF-8 bytes, and the length in bytes of the byte order mark before it.

    Raises:
      InputError: the bytes are not UTF-8; names the line and the byte in it.
    """
    _refuse_utf16(data, path)
    start = _start(data)
    try:
        return data[start:].decode("utf-8"), start
    except UnicodeDecodeError as error:
        place = start + error.start
        line = data.count(b"\n", 0, place) + 1
        column = place - data.rfind(b"\n", 0, place)
        raise InputError(f"{path}: line {line}, {_not_utf8(data[place], column)}") from None


def _start(data: bytes) -> int:
    return len(_MARK) if data.startswith(_MARK) else 0


def _refuse_utf16(data: bytes, path: str) -> None:
    if data.startswith(_UTF32):
        raise InputError(f"{path}: UTF-32, expected UTF-8; convert it, as with `iconv -f UTF-32 -t UTF-8`")
    if data.startswith(_UTF16):
        raise InputError(f"{path}: UTF-16, expected UTF-8; convert it, as with `iconv -f UTF-16 -t UTF-8`")


def _not_utf8(byte: int, column: int) -> str:
    return (
        f"byte {column}: 0x{byte:02x} is not UTF-8; convert the file, as with `iconv -f LATIN1 -t UTF-8` if it is "
        "Latin-1"
    )


class _RepeatedKey(ValueError):
    """An object has one key twice, with different values."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) != len(pairs):
        for key, value in pairs:
            if value != entries[key]:
                raise _RepeatedKey(f"the key {key!r} stands twice, with different values; keep one of them")
    return entries


def loads(text: str | bytes) -> tuple[Any, str]:
    """The value of a JSON text, and the error if it does not parse."""
    try:
        return json_text.loads(text, object_pairs_hook=_object), ""
    except ValueError as error:
        return None, " ".join(str(error).split())


def _is_list_of_objects(text: str) -> bool:
    value, _ = loads(text)
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def _is_lines_of_objects(text: str) -> bool:
    lines = [line for line in text.split("\n") if line.strip()]
    return (
        len(lines) > 1 and all(line.lstrip().startswith("{") for line in lines) and isinstance(loads(lines[0])[0], dict)
    )


def _lines(data: bytes, path: str) -> Iterator[Entry]:
    start, index = _start(data), 0
    for number, line in enumerate(data[start:].split(b"\n"), start=1):
        stop = start + len(line)
        if line.strip():
            try:
                text = line.decode("utf-8")
                value, reason = loads(text)
                error = f"not JSON (line {number}: {reason})" if reason else ""
            except UnicodeDecodeError as decode_error:
                text, value = line.decode("utf-8", errors="replace"), None
                column = decode_error.start + 1 + (start if number == 1 else 0)
                error = f"line {number}, {_not_utf8(line[decode_error.start], column)}"
            yield Entry(index, text, value, f"{path}: record {index}", (start, stop), number, error)
            index += 1
        start = stop + 1


def _list(text: str, start: int, path: str) -> Iterator[Entry]:
    try:
        if not text.strip():
            raise InputError(f"{path}: is empty, so not JSON; expected a list of records")
        if not re.match(r"[ \t\n\r]*\[", text):
            held = _instead_of_list(json_text.loads(text))
            raise InputError(f"{path}: expected a JSON list of records, found {held}")
        done = 0
        for index, (first, last, value, error) in enumerate(_items(text)):
            start += len(text[done:first].encode())
            stop = start + len(text[first:last].encode())
            yield Entry(index, text[first:last], value, f"{path}: record {index}", (start, stop), error=error)
            start, done = stop, last
    except (ValueError, RecursionError) as error:
        reason = json_text.TOO_DEEP if isinstance(error, RecursionError) else " ".join(str(error).split())
        raise InputError(f"{path}: not JSON ({reason}){_advice(text, error)}") from None


def _instead_of_list(value: Any) -> str:
    """What a file holds that should hold a list, and where in it a list is."""
    lists = [key for key, inner in value.items() if isinstance(inner, list)] if isinstance(value, dict) else []
    where = f"; its key {lists[0]!r} holds a list: save that list alone as the file" if lists else ""
    return type(value).__name__ + where


def _advice(text: str, error: Exception) -> str:
    """What to do about text that is not JSON, with "; " before it; "" for nothing in particular."""
    if not isinstance(error, json.JSONDecodeError):
        return ""
    if error.msg == "Extra data" and not text.lstrip().startswith("[") and "\n" in text.strip():
        return "; one object per line needs the ending .jsonl"
    comma = error.pos  # where Python 3.13 sees it; others point at what follows
    if not text.startswith(",", comma):
        comma = len(text[:comma].rstrip()) - 1
    if match := _LAST_COMMA.match(text, max(0, comma)):
        line = text.count("\n", 0, comma) + 1
        return f"; remove the comma before {match[1]!r} in line {line}: JSON has none after the last entry"
    return ""


def _items(text: str) -> Iterator[tuple[int, int, Any, str]]:
    """Where the items of a JSON list begin and end, their values, and what is wrong with them, one at a time."""
    decoder, lenient = json.JSONDecoder(object_pairs_hook=_object), json.JSONDecoder()

    def after(position: int) -> int:
        match = _SPACE.match(text, position)
        return match.end() if match else position

    at = after(text.index("[") + 1)
    while not text.startswith("]", at):
        error = ""
        try:
            value, end = decoder.raw_decode(text, at)
        except _RepeatedKey as exception:
            value, (_, end), error = None, lenient.raw_decode(text, at), str(exception)
        try:
            json_text.check_depth(value, text[at:end])
        except ValueError as exception:
            value, error = None, str(exception)
        yield at, end, value, error
        at = after(end)
        if text.startswith(",", at):
            at = after(at + 1)
            if text.startswith("]", at):
                raise json.JSONDecodeError("Expecting value", text, at)
        elif not text.startswith("]", at):
            raise json.JSONDecodeError("Expecting ',' delimiter", text, at)
    if (end := after(at + 1)) != len(text):
        raise json.JSONDecodeError("Extra data", text, end)
