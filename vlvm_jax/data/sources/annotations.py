"""Annotation files, JSON lists and JSONL: kept as one block of bytes, a record parsed when it is asked for."""

import dataclasses
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from jaxtyping import Int32, Int64, UInt8

from vlvm_jax import storage
from vlvm_jax.data.sources import formats, records
from vlvm_jax.data.sources.records import Record, Source
from vlvm_jax.errors import InputError


@dataclasses.dataclass(frozen=True, eq=False)
class AnnotationFile(Source):
    """The records of one file; see `read_annotations`.

    Attributes:
      root: the media folder.
      blob: the records as LLaVA objects in JSON, one after the other.
      ends: where each begins in the blob, and the end of the last.
      vocabulary: every combination of types that a record has.
      type_codes: index into it of each record.
      faults: of records that are not in the blob, by index.
    """

    path: str
    root: str
    blob: bytes
    ends: Int64[np.ndarray, "n+1"]
    codes: UInt8[np.ndarray, "n"]
    vocabulary: tuple[tuple[str, ...], ...]
    type_codes: Int32[np.ndarray, "n"]
    faults: Mapping[int, str]

    @property
    def types(self) -> list[tuple[str, ...]]:
        return [self.vocabulary[code] for code in self.type_codes]

    def digest(self) -> str:
        return hashlib.sha256(self.blob).hexdigest()

    def read(self, index: int, where: str) -> Record:
        if index in self.faults:
            raise InputError(self.faults[index])
        raw = json.loads(self.blob[self.ends[index] : self.ends[index + 1]])
        return records.parse(raw, where, index, records.below(self.root))


def read_annotations(path: str, root: str, name: str = "auto") -> AnnotationFile:
    """A JSON list, or with the ending `.jsonl` an object per line, with its media in a folder.

    The first record must be right. Later ones are looked at for their kind and types only: one that turns out wrong
    when it is asked for is a `bad_record`.

    Args:
      name: of the records' format (`formats`); "auto" is the first one's.

    Raises:
      InputError: there is no such file, it is not JSON, or its first record is not in the format.
    """
    blob, ends, codes = bytearray(), [0], bytearray()
    vocabulary: dict[tuple[str, ...], int] = {}
    type_codes, faults = [], {}
    clip_of: Callable[[str], str] = str
    for index, (text, raw) in enumerate(_objects(path)):
        where = f"{path}: record {index}"
        try:
            if isinstance(raw, ValueError):
                raise InputError(f"{where}: not JSON ({raw})")
            if index == 0:
                name = formats.detect(raw, where) if name == "auto" else name
                clip_of = formats.clip_finder(_names(root)) if name in formats.CLIPS_BY_ID else clip_of
            found = formats.to_llava(raw, name, where, clip_of)
            if index == 0:
                records.parse(found, where, index, records.below(root))
            blob += text.encode() if found is raw else json.dumps(found).encode()
        except InputError as error:
            if index == 0:
                raise
            faults[index], found = str(error), None
        ends.append(len(blob))
        codes.append(records.kind_code(found))
        type_codes.append(vocabulary.setdefault(records.types_of(found), len(vocabulary)))
    return AnnotationFile(
        path,
        root,
        bytes(blob),
        np.array(ends, np.int64),
        np.frombuffer(bytes(codes), np.uint8),
        tuple(vocabulary),
        np.array(type_codes, np.int32),
        faults,
    )


def _names(folder: str) -> list[str]:
    try:
        return storage.names(folder)
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{folder}: no such folder of clips; give media_root") from None


def _objects(path: str) -> Iterator[tuple[str, Any]]:
    """Text and value of each record; of a line that is not JSON, the error."""
    try:
        text = storage.read_text(path)
    except (FileNotFoundError, IsADirectoryError):
        raise InputError(f"{path}: no such annotation file; give a JSON list or JSONL in the LLaVA format") from None
    if path.endswith(".jsonl"):
        for line in text.split("\n"):
            if line.strip():
                yield line, loaded(line)
        return
    try:
        if re.match(r"\s*\[", text):
            yield from ((text[start:end], value) for start, end, value in items(text))
            return
        found = type(json.loads(text)).__name__
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON ({error}); one object per line needs the ending .jsonl") from None
    raise InputError(f"{path}: expected a JSON list of records, found {found}")


def loaded(line: str | bytes) -> Any:
    """The value of a line of JSON; of one that is none, the error."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        return ValueError(str(error))


def items(text: str) -> Iterator[tuple[int, int, Any]]:
    """Where the items of a JSON list begin and end, and their values, one at a time."""
    decoder, space = json.JSONDecoder(), re.compile(r"[ \t\n\r]*")

    def after(position: int) -> int:
        found = space.match(text, position)
        return found.end() if found else position

    at = after(text.index("[") + 1)
    while not text.startswith("]", at):
        value, end = decoder.raw_decode(text, at)
        yield at, end, value
        at = after(end)
        if text.startswith(",", at):
            at = after(at + 1)
            if text.startswith("]", at):
                raise json.JSONDecodeError("Expecting value", text, at)
        elif not text.startswith("]", at):
            raise json.JSONDecodeError("Expecting ',' delimiter", text, at)
    if (end := after(at + 1)) != len(text):
        raise json.JSONDecodeError("Extra data", text, end)
