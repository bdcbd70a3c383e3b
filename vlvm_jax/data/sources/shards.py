"""ArrayRecord shards that hold conversations with their media: one record's bytes, and the manifests beside the shards.

A folder of shards holds `NAME-00000-of-00016.array_record` (records in groups of one), beside each its `.json`
(`ShardInfo`), and last of all `manifest.json` (`Manifest`), which is there once everything is.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from vlvm_jax import json_text, storage
from vlvm_jax.errors import InputError, brief

VERSION = 1
SUFFIX = ".array_record"
MANIFEST = "manifest.json"


@dataclasses.dataclass(frozen=True)
class ShardInfo:
    """What is in a shard; lies beside it as JSON and is written after it.

    Attributes:
      settings: hash of the source and the settings that the shard was made from.
      records: how many.
      sha256: of the shard's file.
      bytes: size of the shard's file.
      kinds: of each record, "image", "video" or "text".
      types: of each record, its questions' types, each once.
      ids: of each record.
      dropped: number of records left out, by cause.
      media: number of media, by kind.
      dropped_records: each with its number among all records of the source (`record`), `cause` and `detail`.
    """

    settings: str
    records: int
    sha256: str
    bytes: int
    kinds: tuple[str, ...]
    types: tuple[tuple[str, ...], ...]
    ids: tuple[str, ...]
    dropped: Mapping[str, int] = dataclasses.field(default_factory=dict)
    media: Mapping[str, int] = dataclasses.field(default_factory=dict)
    dropped_records: tuple[Mapping[str, Any], ...] = ()
    version: int = VERSION


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What a finished folder holds.

    Attributes:
      shards: file names, in order; a record's place in the whole is counted over them.
      records: in all shards together.
      settings: what the shards were made from and how.
      sha256: over the shards' hashes (`combined`).
    """

    name: str
    shards: tuple[str, ...]
    records: int
    settings: Mapping[str, Any]
    sha256: str
    version: int = VERSION


def shard_name(name: str, index: int, count: int) -> str:
    """File name of one of `count` shards."""
    return f"{name}-{index:05d}-of-{count:05d}{SUFFIX}"


def info_name(shard: str) -> str:
    """File name (or path) of what lies beside a shard."""
    return f"{shard.removesuffix(SUFFIX)}.json"


def combined(hashes: Sequence[str]) -> str:
    """One hash of the shards' hashes, in order."""
    return hashlib.sha256("\n".join(hashes).encode()).hexdigest()


def to_json(description: ShardInfo | Manifest) -> str:
    """The text of the file that holds it; equal content gives equal text."""
    return json.dumps(dataclasses.asdict(description), sort_keys=True)


def read_info(path: str) -> ShardInfo:
    """The `ShardInfo` in a JSON file.

    Raises:
      FileNotFoundError: there is none.
      InputError: it is damaged or of another version.
    """
    return _read(path, ShardInfo)


def read_manifest(folder: str) -> Manifest:
    """The manifest of a folder of shards.

    Raises:
      InputError: there is none (the folder is not finished), or it is damaged or of another version.
    """
    try:
        return _read(storage.join(folder, MANIFEST), Manifest)
    except FileNotFoundError:
        raise InputError(
            f"{folder}: no {MANIFEST}, so these shards are not finished; run `python -m vlvm_jax.data prepare` again"
        ) from None


InfoT = TypeVar("InfoT", ShardInfo, Manifest)


def _read(path: str, cls: type[InfoT]) -> InfoT:
    try:
        values = json_text.loads(storage.read_text(path))
        if values["version"] != VERSION:
            raise InputError(f"{path}: of version {values['version']!r}; this program reads version {VERSION}")
        return cls(**{key: value if key == "settings" else _tuples(value) for key, value in values.items()})
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"{path}: damaged ({brief(error)})") from None


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
