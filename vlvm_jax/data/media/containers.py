"""Where the bytes of one medium lie: a file, a folder or list of frames, or inside a container of many records.

A path of a medium is one string:

    a/b.mp4, gs://bucket/b.mp4         a file, or a folder of frames
    several of these, tabs between     the frames of one clip, in this order
    FILE.array_record#RECORD/M         medium M of a record in a shard (`shard_record`)
    FILE.parquet#ROW/COLUMN[/I]        a row's bytes in a column, or item I of a list there
    FOLDER@SPLIT.tfds#EXAMPLE/FIELD[/I]  the same in a TFDS data set, in the ArrayRecord format
    FILE?OPTIONS.text_pages#START-END[/I]  a text's pages or page I, drawn when they are read (`pages.paths`)

Readers are opened once per process, when they are first needed.
"""

import contextlib
import functools
import io
import os
import re
import threading
from collections.abc import Callable
from typing import Any, BinaryIO, TypeVar

from vlvm_jax import json_text, storage
from vlvm_jax.data import media_names
from vlvm_jax.data.extras import need
from vlvm_jax.data.media import shard_record as shard_record_lib
from vlvm_jax.data.media.shard_record import StoredMedium
from vlvm_jax.data.pages import paths as page_paths
from vlvm_jax.data.pages.draw import PageFiles
from vlvm_jax.data.record import LISTED, STILLS
from vlvm_jax.errors import InputError, brief

_STORED = re.compile(r"(?P<file>.+\.(?P<kind>array_record|parquet|tfds))#(?P<row>\d+)/(?P<place>[^/]+(/\d+)*)")
_RANDOM_ACCESS = "readahead_buffer_size:0,max_parallelism:0"
_PATIENCE = 60.0  # seconds; ArrayRecord's own reader asks failing storage again for 15 minutes
_LOCK = threading.RLock()  # Parquet's readers are for one thread

ValueT = TypeVar("ValueT")


def open_medium(path: str) -> BinaryIO:
    """One medium's bytes, or one frame's, seekable. A name that no file has may mean another one: `media_names`.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is not in its container, or that is damaged.
      StorageError: storage does not answer.
    """
    stored = _stored(path)
    if stored is None:
        try:
            return storage.open_binary(path)
        except FileNotFoundError:
            if (other := media_names.meant(path)) is None:
                raise
            return storage.open_binary(other)
    if not isinstance(stored, bytes):
        raise ValueError(f"{path} is not one file")
    return io.BytesIO(stored)


def frame_names(path: str) -> list[str] | None:
    """What `open_medium` opens for each frame of a clip kept as images, in time order; None when it is one file.

    A folder's frames are its images by name, numbers in names compared as numbers; it may hold none.

    Raises:
      FileNotFoundError, ValueError, StorageError: as `open_medium`, of a medium in a container.
    """
    if LISTED in path:
        return path.split(LISTED)
    stored = _stored(path)
    if stored is not None:
        many = isinstance(stored, list | PageFiles)
        return [f"{path}/{number}" for number in range(len(stored))] if many else None
    if not storage.is_dir(path):
        if storage.is_remote(path) or storage.is_file(path):
            return None
        if (other := media_names.meant(path)) is None or not storage.is_dir(other):
            return None
        path = other
    names = [name for name in storage.names(path) if name.lower().endswith(STILLS)]
    return [storage.join(path, name) for name in sorted(names, key=_by_number)]


def frame_rate(path: str) -> float | None:
    """Frames per second of a clip that a shard keeps as images, where that is known."""
    match = _STORED.fullmatch(path)
    if match is None or match["kind"] != "array_record":
        return None
    _, media = shard_record(match["file"], int(match["row"]))
    return media[int(match["place"].split("/")[0])].fps or None


def _by_number(name: str) -> list[str | int]:
    return [int(part) if part.isdigit() else part for part in re.split(r"([0-9]+)", name)]


def _stored(path: str) -> Any:
    """What a container holds under a path: bytes, or a list of them; None where the path is of no container."""
    if (drawn := page_paths.stored(path)) is not None:
        return drawn
    match = _STORED.fullmatch(path)
    if match is None:
        return None
    file, row = match["file"], int(match["row"])
    name, *items = match["place"].split("/")
    try:
        if match["kind"] == "array_record":
            medium = shard_record(file, row)[1][int(name)]
            value: Any = list(medium.frames) or medium.data
        elif match["kind"] == "parquet":
            value = parquet_row(file, row)[name]
        else:
            value = tfds_example(file.removesuffix(".tfds"), row)[name]
        for item in items:
            value = value[int(item)]
    except (LookupError, TypeError) as error:
        raise ValueError(f"{path}: there is no such thing ({brief(error)})") from None
    return value["bytes"] if isinstance(value, dict) and "bytes" in value else value


# --- ArrayRecord shards ------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=4)  # a record is asked for its text and for each of its media
def shard_record(file: str, index: int) -> tuple[dict[str, Any], list[StoredMedium]]:
    """One record of a shard, its media's bytes with it.

    Raises:
      FileNotFoundError: there is no such shard.
      ValueError: there is no such record, or it is damaged.
      StorageError: storage does not answer.
    """
    return shard_record_lib.decode(_in_time(file, lambda: _read_array_record(file, index)))


def _read_array_record(file: str, index: int) -> bytes:
    reader = _array_record(file)
    if not 0 <= index < reader.num_records():
        raise ValueError(f"{file}: no record {index} among {reader.num_records()}")
    try:
        return reader.read([index])[0]
    except Exception as error:
        raise ValueError(f"{file}: record {index}: damaged ({brief(error)})") from None


@functools.lru_cache(maxsize=256)
def _array_record(file: str):
    from array_record.python.array_record_module import ArrayRecordReader  # some 0.1 s, for those who need it

    if not storage.is_remote(file) and not storage.is_file(file):
        raise FileNotFoundError(file)
    _share_emulator()
    reader = ArrayRecordReader(file, _RANDOM_ACCESS)
    if not reader.ok():
        if not storage.is_file(file):
            raise FileNotFoundError(file)
        raise ValueError(f"{file}: damaged")
    return reader


def _share_emulator() -> None:
    """gcsfs goes by one variable where there is an emulator, ArrayRecord's own reader by another."""
    if "STORAGE_EMULATOR_HOST" in os.environ:
        os.environ.setdefault("CLOUD_STORAGE_EMULATOR_ENDPOINT", os.environ["STORAGE_EMULATOR_HOST"])


def _in_time(file: str, read: Callable[[], ValueT]) -> ValueT:
    """What a reader gives that goes to storage by itself; `StorageError` when that takes too long."""
    if not storage.is_remote(file):
        return read()
    done: list[Callable[[], ValueT]] = []

    def work() -> None:
        try:
            value = read()
            done.append(lambda: value)
        except Exception as error:
            done.append(functools.partial(_raise, error))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(_PATIENCE)
    if not done:
        raise storage.StorageError(f"{file}: storage does not answer (nothing came in {_PATIENCE:g} s)")
    return done[0]()


def _raise(error: Exception) -> Any:
    raise error


# --- Parquet -----------------------------------------------------------------------------------------------------


def parquet_row(file: str, row: int) -> dict[str, Any]:
    """One row, by column, as plain Python values. Its whole row group is read and kept for the next.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: there is no such row, or the file is damaged.
      StorageError: storage does not answer.
    """
    with _LOCK:
        first = 0
        metadata = parquet_file(file).metadata
        for group in range(metadata.num_row_groups):
            count = metadata.row_group(group).num_rows
            if row < first + count:
                return _row_group(file, group).slice(row - first, 1).to_pylist()[0]
            first += count
    raise ValueError(f"{file}: no row {row} among {first}")


@functools.lru_cache(maxsize=64)
def parquet_file(file: str) -> Any:
    """A `pyarrow.parquet.ParquetFile`.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is damaged.
      InputError: pyarrow is not installed.
    """
    return need("pyarrow.parquet", "parquet").ParquetFile(storage.open_binary(file))


@functools.lru_cache(maxsize=2)
def _row_group(file: str, group: int) -> Any:
    try:
        return parquet_file(file).read_row_group(group)
    except InputError:  # storage refuses access; an OSError too
        raise
    except OSError as error:
        raise ValueError(f"{file}: row group {group}: damaged ({brief(error)})") from None


# --- TFDS --------------------------------------------------------------------------------------------------------


def tfds_example(path: str, index: int) -> dict[str, Any]:
    """One example of FOLDER@SPLIT by field as it is stored: media compressed, text as bytes, sequences as lists.

    Raises:
      InputError: the folder or split cannot be read, or tensorflow-datasets is not installed.
      ValueError: there is no such example, or it is damaged.
      StorageError: storage does not answer.
    """
    _, source, parser = tfds_source(path)
    try:
        return _plain(parser.parse_example(_in_time(path, lambda: source[index])))
    except storage.StorageError:
        raise
    except Exception as error:
        raise ValueError(f"{path}: example {index}: damaged ({brief(error)})") from None


@functools.lru_cache(maxsize=16)
def tfds_source(path: str) -> tuple[Any, Any, Any]:
    """The builder of FOLDER@SPLIT, the split's serialised examples, and what parses them; without TensorFlow.

    Raises:
      InputError: the folder or split cannot be read, or tensorflow-datasets is not installed.
    """
    _share_emulator()
    folder, _, split = path.rpartition("@")
    _check_features(folder)
    tfds = need("tensorflow_datasets", "tfds")
    parsers = need("tensorflow_datasets.core.example_parser", "tfds")
    try:
        builder = tfds.builder_from_directory(folder)
        if split not in builder.info.splits:
            raise ValueError(f"no split {split!r}; there are {', '.join(builder.info.splits)}")
        source = builder.as_data_source(split).data_source
        return builder, source, parsers.ExampleParserNp(builder.info.features.get_serialized_info())
    except Exception as error:
        raise InputError(
            f"{path}: not a TFDS data set in the ArrayRecord format that can be read ({brief(error)})"
        ) from None


_FEATURES = re.compile(r"tensorflow_datasets\.(core\.)?features\.[\w.]+")


def _check_features(folder: str) -> None:
    """Raises `InputError` if `features.json` names a class that is not TFDS' own: TFDS would import its module."""
    file = storage.join(folder, "features.json")
    try:
        values = json_text.loads(storage.read_text(file))
    except FileNotFoundError:
        return  # TFDS says what is missing
    except ValueError as error:
        raise InputError(f"{file}: not JSON ({brief(error)})") from None
    waiting = [values]
    while waiting:
        value = waiting.pop()
        if isinstance(value, str) and value.lstrip().startswith(("{", "[")):  # files of old versions have JSON in JSON
            with contextlib.suppress(ValueError):
                waiting.append(json_text.loads(value))
        if not isinstance(value, dict | list):
            continue
        for key in ("pythonClassName", "python_class_name", "type"):
            name = value.get(key) if isinstance(value, dict) else None
            if isinstance(name, str) and not _FEATURES.fullmatch(name):
                raise InputError(f"{file}: {key} {name!r} is no feature of TFDS; code that data name is never run")
        waiting += value.values() if isinstance(value, dict) else value


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value.tolist() if hasattr(value, "tolist") else value
