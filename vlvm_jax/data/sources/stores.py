"""Sources whose media lie in containers with their text: ArrayRecord shards, Parquet, TFDS."""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8

from vlvm_jax import json_text
from vlvm_jax.data import record as records
from vlvm_jax.data.extras import need
from vlvm_jax.data.media import containers
from vlvm_jax.data.record import KINDS, MEDIA_KINDS, Name, Record, Source
from vlvm_jax.data.sources import formats, media_keys, shards
from vlvm_jax.data.sources.shards import ShardInfo
from vlvm_jax.errors import InputError, brief


@dataclasses.dataclass(frozen=True, eq=False)
class Shard(Source):
    """The records of one shard that `python -m vlvm_jax.data prepare` made."""

    path: str
    codes: UInt8[np.ndarray, "n"]
    types: Sequence[tuple[str, ...]]
    sha256: str

    @classmethod
    def open(cls, path: str) -> "Shard":
        """A shard by what lies beside it; the shard itself is opened with its first record.

        Raises:
          InputError: nothing lies beside it.
        """
        beside = shards.info_name(path)
        try:
            info: ShardInfo = shards.read_info(beside)
        except FileNotFoundError:
            raise InputError(
                f"{path}: no {beside} beside it; shards are made by `python -m vlvm_jax.data prepare`"
            ) from None
        known: dict[tuple[str, ...], tuple[str, ...]] = {}  # few combinations of types, each pickled once
        row_types = (tuple(dict.fromkeys(filter(None, one))) for one in info.types)
        types = tuple(known.setdefault(one, one) for one in row_types)
        return cls(path, np.array([KINDS.index(kind) for kind in info.kinds], np.uint8), types, info.sha256)

    def digest(self) -> str:
        return self.sha256

    def read(self, index: int, where: str) -> Record:
        raw, media = containers.shard_record(self.path, index)
        places = {kind: [i for i, medium in enumerate(media) if medium.kind == kind] for kind in MEDIA_KINDS}
        stored = [place for kind in MEDIA_KINDS for place in places[kind]]
        # Whatever the names are: the record may have had lists of frames.
        raw = raw | {kind: list(map(str, places[kind])) or None for kind in MEDIA_KINDS}
        return records.parse(raw, where, index, lambda number, _name: f"{self.path}#{index}/{stored[number]}")


@dataclasses.dataclass(frozen=True)
class Columns:
    """How a table's columns become the keys of a record.

    Attributes:
      fields: column by key of the record, for those of another name.
      format: of the records (`formats`).
      root: the folder of media that a table names by path.
    """

    fields: Mapping[str, str]
    format: str
    root: str

    def column(self, key: str, names: Sequence[str]) -> str | None:
        """The column that is a record's `key`, among a table's; images and videos may have the plural's name."""
        wanted = self.fields.get(key)
        candidates = [wanted] if wanted else [key, f"{key}s"] if key in MEDIA_KINDS else [key]
        return next((name for name in candidates if name in names), None)

    def typed(self, names: Sequence[str]) -> dict[str, str]:
        """The columns with the questions' types, among a table's."""
        return {key: name for key in ("type", "types") if (name := self.column(key, names))}

    def resolved(self, names: Sequence[str], path: str) -> "Columns":
        """These columns, with the format that a table of such columns has.

        Raises:
          InputError: the table lacks a column that `fields` names, or is of no format.
        """
        for key, name in self.fields.items():
            if key not in (*MEDIA_KINDS, *_TEXT):
                raise InputError(f"{path}: fields: no key {key!r}; there are {', '.join((*MEDIA_KINDS, *_TEXT))}")
            if name not in names:
                raise InputError(f"{path}: fields: no column {name!r}; there are {', '.join(names)}")
        self._check_media(names, path)
        if self.format != "auto":
            return self
        keys = dict.fromkeys(key for key in _TEXT if self.column(key, names))
        return dataclasses.replace(self, format=formats.detect(keys, f"{path}: columns {', '.join(names)}"))

    def _check_media(self, names: Sequence[str], path: str) -> None:
        """Raises `InputError` if no column of media is read but some column's name looks like one."""
        if any(self.column(kind, names) for kind in MEDIA_KINDS):
            return
        read = {column for key in _TEXT if (column := self.column(key, names))}
        if suspects := media_keys.suspects({name: "?" for name in names if name not in read}):
            kind = media_keys.READ[media_keys.meant(suspects[0])]
            raise InputError(
                f"{path}: the column {suspects[0]!r} looks like media, but is not read; rename it to {kind!r}, or set "
                f"fields={{{kind!r}: {suspects[0]!r}}}"
            )

    def record(self, row: Mapping[str, Any], uri: str, where: str, index: int) -> Record:
        """The record of a row.

        Args:
          uri: of what the container holds of this row; `/COLUMN` follows.
        """
        columns = {key: self.column(key, tuple(row)) for key in (*MEDIA_KINDS, *_TEXT)}
        raw: dict[str, Any] = {key: _text(row[column]) for key, column in columns.items() if column and key in _TEXT}
        for kind in MEDIA_KINDS:
            column = columns[kind]
            value = None if column is None else _name(row[column], f"{uri}/{column}", kind == "video")
            if value is not None and value != []:
                raw[kind] = value
        raw = {key: value for key, value in raw.items() if value is not None}
        for key in _JSON:
            if isinstance(raw.get(key), str):
                raw[key] = json_text.loads(raw[key])
            if isinstance(raw.get(key), dict):  # TFDS turns a list of objects inside out
                raw[key] = [dict(zip(raw[key], item, strict=True)) for item in zip(*raw[key].values(), strict=True)]
        below = records.below(self.root)

        def locate(number: int, name: Name) -> str:
            return name if isinstance(name, str) and name.startswith(uri) else below(number, name)

        llava_record = formats.to_llava(raw, self.format, where, str)
        return records.parse(llava_record, where, index, locate)


_READ = [one for one in formats.FORMATS.values() if not one.clip_by_id]
_KEYS = dict.fromkeys(key for one in _READ for key in (*one.keys, *one.texts))
_TEXT = ("id", *_KEYS, "system", "type", "types", "start", "end")
_JSON = tuple(dict.fromkeys(key for one in _READ for key in one.lists))  # which a column may hold as texts


def _text(value: Any) -> Any:
    """A value as JSON would give it."""
    if isinstance(value, bytes):
        return value.decode("utf-8", errors="replace")
    if isinstance(value, dict):
        return {key: _text(item) for key, item in value.items() if item is not None}
    return [_text(item) for item in value] if isinstance(value, list) else value


def _name(value: Any, uri: str, clip: bool) -> Any:
    """What a record names of a stored value: itself where it is a path, else where it is stored."""
    if isinstance(value, dict):
        value = value.get("path") if value.get("bytes") is None else value["bytes"]
    if isinstance(value, bytes):
        return uri
    if not isinstance(value, list):
        return value or None
    if clip and value and all(_is_still(item) for item in value):
        return uri  # the frames of one clip
    return [_name(item, f"{uri}/{number}", clip) for number, item in enumerate(value)]


def _types(row: Mapping[str, Any], typed: Mapping[str, str]) -> tuple[str, ...]:
    return records.types_of({key: _text(row[column]) for key, column in typed.items()})


def _is_still(value: Any) -> bool:
    data = value.get("bytes") if isinstance(value, dict) else value
    return isinstance(data, bytes) and (data.startswith((b"\xff\xd8\xff", b"\x89PNG", b"BM")) or data[8:12] == b"WEBP")


@dataclasses.dataclass(frozen=True, eq=False)
class ParquetFile(Source):
    """The rows of one file. A row's whole row group is read with it, so that small groups are quick to shuffle."""

    path: str
    columns: Columns
    codes: UInt8[np.ndarray, "n"]
    types: Sequence[tuple[str, ...]]
    sha256: str

    @classmethod
    def open(cls, path: str, columns: Columns) -> "ParquetFile":
        """A file by its footer; of what it holds only the columns of types are read.

        Raises:
          InputError: there is no such file, it is damaged, lacks columns, or pyarrow is not installed.
        """
        try:
            file = containers.parquet_file(path)
        except FileNotFoundError:
            raise InputError(f"{path}: no such Parquet file") from None
        except InputError:  # storage refuses access; an OSError too
            raise
        except (ValueError, OSError) as error:
            raise InputError(f"{path}: not a Parquet file ({brief(error)})") from None
        names = tuple(file.schema_arrow.names)
        columns = columns.resolved(names, path)
        codes = np.zeros(file.metadata.num_rows, np.uint8)
        for kind in MEDIA_KINDS:  # a record with both counts as a video
            column = columns.column(kind, names)
            if column is not None:
                codes[_present(file, column)] = KINDS.index(kind)
        typed = columns.typed(names)
        types = [()] * len(codes)
        if typed:
            types = [_types(row, typed) for row in file.read(columns=list(typed.values())).to_pylist()]
        digest = hashlib.sha256(repr(file.metadata.to_dict()).encode()).hexdigest()
        return cls(path, columns, codes, types, digest)

    def digest(self) -> str:
        return self.sha256

    def read(self, index: int, where: str) -> Record:
        return self.columns.record(containers.parquet_row(self.path, index), f"{self.path}#{index}", where, index)


def _present(file: Any, column: str) -> np.ndarray:
    """Which rows have a value in a column: as the footer says; where that leaves it open, the values are read."""
    present = []
    for number in range(file.metadata.num_row_groups):
        group = file.metadata.row_group(number)
        leaves = [leaf for leaf in map(group.column, range(group.num_columns)) if _belongs(leaf, column)]
        nulls = [leaf.statistics.null_count if leaf.statistics is not None else None for leaf in leaves]
        if 0 in nulls:
            present.append(np.ones(group.num_rows, bool))
        elif nulls == [leaf.num_values for leaf in leaves]:
            present.append(np.zeros(group.num_rows, bool))
        else:
            rows = file.read_row_group(number, columns=[column]).to_pylist()
            present.append(np.array([_name(row[column], "", False) not in (None, []) for row in rows], bool))
    return np.concatenate([np.zeros(0, bool), *present])


def _belongs(leaf: Any, column: str) -> bool:
    return leaf.path_in_schema == column or leaf.path_in_schema.startswith(f"{column}.")


@dataclasses.dataclass(frozen=True, eq=False)
class TfdsSplit(Source):
    """The examples of one split of a TFDS data set in the ArrayRecord format; TensorFlow is not needed.

    The kind of all records is that of the features: with one for videos, all are videos.
    """

    path: str
    columns: Columns
    codes: UInt8[np.ndarray, "n"]
    paths: frozenset[str]
    sha256: str

    @classmethod
    def open(cls, path: str, columns: Columns) -> "TfdsSplit":
        """A split by `FOLDER@SPLIT`, the folder being that of one version.

        Raises:
          InputError: it cannot be read, lacks fields, or tensorflow-datasets is not installed.
        """
        _, at, split = path.rpartition("@")
        if not at:
            raise InputError(f"{path}: name the split too, as {path}@train")
        builder, source, _ = containers.tfds_source(path)
        features = builder.info.features
        columns = columns.resolved(tuple(features), path)
        kinds = [kind for kind in MEDIA_KINDS if columns.column(kind, tuple(features))]
        text = need("tensorflow_datasets", "tfds").features.Text
        paths = [name for name, one in features.items() if isinstance(getattr(one, "feature", one), text)]
        info = builder.info.splits[split]
        digest = hashlib.sha256(repr((builder.info.full_name, split, info.shard_lengths, info.num_bytes)).encode())
        codes = np.full(len(source), KINDS.index(kinds[-1] if kinds else "text"), np.uint8)
        return cls(path, columns, codes, frozenset(paths), digest.hexdigest())

    @property
    def types(self) -> list[tuple[str, ...]]:
        """Read from the examples, all of them, where there is such a field."""
        typed = self.columns.typed(tuple(self._row(0))) if len(self) else {}
        if not typed:
            return [()] * len(self)
        return [_types(self._row(index), typed) for index in range(len(self))]

    def digest(self) -> str:
        return self.sha256

    def read(self, index: int, where: str) -> Record:
        return self.columns.record(self._row(index), f"{self.path}.tfds#{index}", where, index)

    def _row(self, index: int) -> dict[str, Any]:
        row = containers.tfds_example(self.path, index)
        return {name: _text(value) if name in self.paths else value for name, value in row.items()}
