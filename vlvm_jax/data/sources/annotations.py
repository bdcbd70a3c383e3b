"""Annotation files, JSON lists and JSONL: kept as one block of bytes, a record parsed when it is asked for."""

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Mapping

import numpy as np
from jaxtyping import Int32, Int64, UInt8

from vlvm_jax.data import json_lines, record
from vlvm_jax.data.media_names import ClipsById
from vlvm_jax.data.record import Record, Source
from vlvm_jax.data.sources import formats
from vlvm_jax.data.sources.media_keys import ClipOf
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
      notes: what to tell the user about the file, a line each.
    """

    path: str
    root: str
    blob: bytes
    ends: Int64[np.ndarray, "n+1"]
    codes: UInt8[np.ndarray, "n"]
    vocabulary: tuple[tuple[str, ...], ...]
    type_codes: Int32[np.ndarray, "n"]
    faults: Mapping[int, str]
    notes: tuple[str, ...] = ()

    @property
    def types(self) -> list[tuple[str, ...]]:
        return [self.vocabulary[code] for code in self.type_codes]

    def digest(self) -> str:
        return hashlib.sha256(self.blob).hexdigest()

    def read(self, index: int, where: str) -> Record:
        if index in self.faults:
            raise InputError(self.faults[index])
        raw = json.loads(self.blob[self.ends[index] : self.ends[index + 1]])
        return record.parse(raw, where, index, record.below(self.root))


def read_annotations(path: str, root: str, name: str = "auto") -> AnnotationFile:
    """A JSON list or JSON Lines, with its media in a folder.

    A record that cannot be used is a `bad_record` when it is asked for. At least one record must be valid: the first
    valid one confirms the format, and later ones are checked in full only when they are asked for.

    Args:
      name: of the records' format (`formats`); "auto" takes that of the first record that can be used.

    Raises:
      InputError: there is no such file, it is not JSON, or none of its records is in the format.
    """
    blob, ends, codes = bytearray(), [0], bytearray()
    vocabulary: dict[tuple[str, ...], int] = {}
    type_codes, faults = [], {}
    notes, auto, confirmed = _Notes(path), name == "auto", False
    clip_of = _clip_finder(root, notes)
    expected = "no such annotation file; give a JSON list or JSONL (the formats: docs/your_data.md)"
    for entry in json_lines.read(path, expected):
        where = entry.where
        try:
            if entry.error:
                raise InputError(f"{where}: {entry.error}")
            if auto and not confirmed:
                name = formats.detect(entry.value, where)
            llava_record = formats.to_llava(entry.value, name, where, clip_of, notes.unread)
            if not confirmed:
                record.parse(llava_record, where, entry.index, record.below(root))
                confirmed = True
            blob += entry.text.encode() if llava_record is entry.value else json.dumps(llava_record).encode()
        except InputError as error:
            faults[entry.index], llava_record = str(error), None
        except RecursionError:
            faults[entry.index], llava_record = f"{where}: lists or objects nested too deeply", None
        ends.append(len(blob))
        codes.append(record.kind_code(llava_record))
        type_codes.append(vocabulary.setdefault(record.types_of(llava_record), len(vocabulary)))
    if faults and not confirmed:
        raise InputError(faults[0])
    if not codes:
        raise InputError(f"{path}: holds no record; give a JSON list or JSONL with at least one")
    return AnnotationFile(
        path,
        root,
        bytes(blob),
        np.array(ends, np.int64),
        np.frombuffer(bytes(codes), np.uint8),
        tuple(vocabulary),
        np.array(type_codes, np.int32),
        faults,
        notes.lines(),
    )


class _Notes:
    """What the user should know about a file's records.

    Attributes:
      unread: for each key that looks like media but is not read, the number of records that have it.
      renamed: ids of clips that were found under another name, and these names.
    """

    def __init__(self, path: str):
        self.path = path
        self.unread: Counter[str] = Counter()
        self.renamed: dict[str, str] = {}

    def lines(self) -> tuple[str, ...]:
        lines = [
            f"{self.path}: {what} is not read ({count} {'record has' if count == 1 else 'records have'} it)"
            for what, count in self.unread.items()
        ]
        if self.renamed:
            clip, name = next(iter(self.renamed.items()))
            lines.append(f"{self.path}: clips are found by id, such as {name} for {clip} ({len(self.renamed)} in all)")
        return tuple(lines)


def _clip_finder(root: str, notes: _Notes) -> ClipOf:
    clips = ClipsById(root)

    def find(clip: str) -> str | None:
        try:
            name = clips(clip)
        except FileNotFoundError:
            raise InputError(f"{root}: no such folder of clips; give media_root") from None
        if name is not None and name != clip and name.rpartition(".")[0] != clip:
            notes.renamed[clip] = name
        return name

    return find
