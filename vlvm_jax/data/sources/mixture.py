"""Where records come from: annotations, shards, a table, texts, or a mixture of these, local or `gs://`."""

import bisect
import dataclasses
import hashlib
import itertools
import math
import re
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vlvm_jax import storage
from vlvm_jax.config import MixtureEntry
from vlvm_jax.data import json_lines, media_names, yaml_text
from vlvm_jax.data.record import KINDS, STILLS, Record, Source, short
from vlvm_jax.data.sources import formats, shards, sides
from vlvm_jax.data.sources.annotations import read_annotations
from vlvm_jax.data.sources.stores import Columns, ParquetFile, Shard, TfdsSplit
from vlvm_jax.data.sources.text_pages import TextPagesFile
from vlvm_jax.errors import InputError, brief

CONTAINERS = ("array_record", "parquet", "tfds", "mixture", "text_pages")  # files that are no lists of JSON records
MAX_NESTED = 4  # mixture files in mixture files
MAX_LISTED = 10_000  # data sets of a mixture file and those in it
MOST = 2**31 - 1  # records an epoch may have: batches number them with int32


@dataclasses.dataclass(frozen=True, eq=False)
class Part:
    """What a mixture takes of a source: the chosen records one after the other, again and again, `length` in all."""

    source: Source
    chosen: np.ndarray
    length: int


class NothingLeft(InputError):
    """A mixture has no record."""


class Mixture(Source):
    """Records of several sources, one after the other.

    Attributes:
      parts: none is empty.
    """

    def __init__(self, parts: Sequence[Part], path: str = "mixture"):
        self.path, self.parts = path, tuple(part for part in parts if part.length)
        self._ends = list(itertools.accumulate(part.length for part in self.parts))
        self.notes = tuple(dict.fromkeys(line for part in self.parts for line in part.source.notes))

    @property
    def codes(self) -> np.ndarray:
        return _joined([np.resize(part.source.codes[part.chosen], part.length) for part in self.parts], np.uint8)

    @property
    def types(self) -> list[tuple[str, ...]]:
        all_types: list[tuple[str, ...]] = []
        for part in self.parts:
            types = part.source.types
            all_types += [types[i] for i in np.resize(part.chosen, part.length)]
        return all_types

    @property
    def kind_counts(self) -> dict[str, int]:
        """Number of records of each kind, without a look at any."""
        total = np.zeros(len(KINDS), np.int64)
        for part in self.parts:
            whole, rest = divmod(part.length, len(part.chosen))
            codes = part.source.codes[part.chosen]
            total += whole * np.bincount(codes, minlength=len(KINDS))
            total += np.bincount(codes[:rest], minlength=len(KINDS))
        return dict(zip(KINDS, total.tolist(), strict=True))

    def digest(self) -> str:
        sha256 = hashlib.sha256()
        for part in self.parts:
            sha256.update(f"{part.source.digest()} {part.length}".encode())
            sha256.update(part.chosen.astype("<i8").tobytes())
        return sha256.hexdigest()

    def drawn(self) -> list[dict[str, Any]]:
        """Which records of each source an epoch holds, where that is not all of them: what a run writes down of a
        draw."""
        return [
            {"source": part.source.path, "of": len(part.source), "records": part.chosen.tolist()}
            for part in self.parts
            if len(part.chosen) < len(part.source)
        ]

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> Record:
        index = range(len(self))[index]
        number = bisect.bisect_right(self._ends, index)
        part = self.parts[number]
        place = index - (self._ends[number] - part.length)
        return part.source[int(part.chosen[place % len(part.chosen)])]

    def read(self, index: int, where: str) -> Record:
        del where
        return self[index]


def _joined(arrays: Sequence[np.ndarray], dtype: Any) -> np.ndarray:
    return np.concatenate([np.zeros(0, dtype), *arrays])


def read_mixture(entries: Sequence[MixtureEntry], seed: int) -> Mixture:
    """All records of a stage. A `fraction` or `count` is drawn without replacement by `seed` and the entry's place.

    With weights, an epoch is as short as it can be with every record in it at least once and the entries in the ratio
    of their weights: one entry's records come once, the others' are repeated, a part of them, drawn by the seed, once
    more than the rest.

    Raises:
      InputError: a file is missing or in no format that is known; nothing is left, or fewer than a `count`.
    """
    parts = []
    for number, entry in enumerate(entries):
        source = open_source(entry, (seed, number))
        chosen = np.flatnonzero(_wanted(source, entry) & sides.chosen(source, entry))
        keep = len(chosen) if entry.count is None else entry.count
        if keep > len(chosen):
            raise InputError(f"{entry.path}: count {keep}, but {len(chosen)} records are there to be drawn")
        if entry.fraction < 1 and len(chosen):
            keep = max(1, round(entry.fraction * len(chosen)))
        if keep < len(chosen):
            drawn = np.random.default_rng([seed, number]).choice(len(chosen), keep, replace=False)
            chosen = chosen[np.sort(drawn)]
        parts.append(Part(source, chosen, len(chosen) * entry.repeat))
    paths = ", ".join(entry.path for entry in entries)
    if not any(part.length for part in parts):
        by = "media and types" if any(entry.types for entry in entries) else "media"
        raise NothingLeft(f"{paths}: no record is left after filtering by {by}")
    weights = [entry.weight for entry in entries if entry.weight is not None]
    if weights:
        parts = _weighted(parts, weights, seed)
    mixture = Mixture(parts, paths)
    if len(mixture) > MOST:
        raise InputError(f"{paths}: an epoch of {len(mixture)} records; with such weights make the shares more alike")
    return mixture


def _wanted(source: Source, entry: MixtureEntry) -> np.ndarray:
    """Which records an entry takes. Those that cannot be told apart are kept, to be counted."""
    bad = source.codes == KINDS.index("bad")
    wanted = np.isin(source.codes, [KINDS.index(kind) for kind in entry.media])
    if entry.types:
        known: dict[tuple[str, ...], bool] = {}
        types = source.types
        wanted &= np.array([known.setdefault(one, not set(entry.types).isdisjoint(one)) for one in types], bool)
    return wanted | bad


def _weighted(parts: Sequence[Part], weights: Sequence[float], seed: int) -> list[Part]:
    for part in parts:
        if not part.length:
            raise InputError(f"{part.source.path}: no record is left for its weight")
    once = max(len(part.chosen) / weight for part, weight in zip(parts, weights, strict=True))
    return [
        Part(
            part.source,
            np.random.default_rng([seed, number, 1]).permutation(part.chosen),
            max(len(part.chosen), round(once * weight)),
        )
        for number, (part, weight) in enumerate(zip(parts, weights, strict=True))
    ]


class _Opened(NamedTuple):
    """What has been opened for one entry: the mixture files around what is opened next, and how many files in all."""

    within: tuple[str, ...]
    files: Counter[str]

    def inside(self, path: str) -> "_Opened":
        """For what a mixture file lists.

        Raises:
          InputError: the file lists itself, or mixtures are nested too deep.
        """
        if path in self.within:
            raise InputError(f"{path}: a mixture of itself, through {self.within[-1]}")
        if len(self.within) >= MAX_NESTED:
            raise InputError(f"{path}: mixtures in mixtures more than {MAX_NESTED} levels deep")
        return _Opened((*self.within, path), self.files if self.within else Counter())

    def count(self, path: str) -> None:
        self.files[path] += 1
        if self.within and self.files.total() > MAX_LISTED:
            raise InputError(f"{self.within[0]}: lists more than {MAX_LISTED:,} data sets, with those of its mixtures")


_OUTERMOST = _Opened((), Counter())


def open_source(entry: MixtureEntry, seed: Sequence[int] = (0,), opened: _Opened = _OUTERMOST) -> Source:
    """The records of an entry's path, whatever of them it takes.

    Args:
      seed: draws what a mixture file takes at random.
      opened: of the mixture file that lists the entry.

    Raises:
      InputError: a file is missing or in no format that is known.
    """
    check_entry(entry)
    sources = [_open(file, entry, (*seed, number), opened) for number, file in enumerate(_files(entry.path))]
    return sources[0] if len(sources) == 1 else _all_of(sources, entry.path)


def check_entry(entry: MixtureEntry) -> None:
    """Raises `InputError` if a recipe was not told what to train on, or if an entry's format does not exist."""
    if not entry.path:
        raise InputError(
            "data=... is required: the recipe names no data; give it as in --config=FILE.py:PRESET,data=FILE"
        )
    check_format(entry.format, f"{entry.path}: format")


def check_format(name: str, where: str) -> None:
    """Raises `InputError` if there is no such format."""
    known = ("auto", *formats.FORMATS, *CONTAINERS)
    if name not in known:
        raise InputError(f"{where}: no format {name!r}; there are {', '.join(known)}")


def _all_of(sources: Sequence[Source], path: str) -> Mixture:
    return Mixture([Part(source, np.arange(len(source)), len(source)) for source in sources], path)


def _files(path: str) -> list[str]:
    """The files of a path with `{a,b}` or `*` in it; of another path itself."""
    if not storage.is_remote(path):
        path = str(Path(path).expanduser())
    if braces := re.fullmatch(r"([^{}]*)\{([^{}]*,[^{}]*)\}(.*)", path):
        head, choices, tail = braces.groups()
        return [file for choice in choices.split(",") for file in _files(f"{head}{choice.strip()}{tail}")]
    if "*" not in path:
        return [path]
    files = storage.glob(path)
    if not files:
        raise InputError(f"{path}: no file has such a name")
    return files


def _open(path: str, entry: MixtureEntry, seed: Sequence[int], opened: _Opened) -> Source:
    if opened.within:
        opened.count(path)
    if entry.format == "text_pages":
        return TextPagesFile.open(path, entry.pages)
    root = entry.media_root or storage.parent(path)
    if not storage.is_remote(root):
        root = str(Path(root).expanduser())
    records_are = entry.format if entry.format in formats.FORMATS else "auto"
    columns = Columns(dict(entry.fields), records_are, root)
    kind = _kind(path, entry.format)
    if kind == "array_record":
        if path.endswith(shards.SUFFIX):
            return Shard.open(path)
        names = shards.read_manifest(path).shards
        return _all_of([Shard.open(storage.join(path, name)) for name in names], path)
    if kind == "parquet":
        return ParquetFile.open(path, columns)
    if kind == "tfds":
        return TfdsSplit.open(path, columns)
    if kind == "mixture":
        return _read_yaml(path, entry, seed, opened.inside(path))
    return read_annotations(path, root, records_are)


def _kind(path: str, format: str) -> str:
    """What is to be opened at a path, one of `CONTAINERS` or "annotations": as asked for, or as the name says."""
    if format in CONTAINERS:
        return format
    if path.lower().endswith((".yaml", ".yml")):
        return "mixture"
    if path.lower().endswith((".json", ".jsonl")):
        return "annotations"
    if path.lower().endswith(".parquet"):
        return "parquet"
    if path.endswith(shards.SUFFIX) or storage.is_file(storage.join(path, shards.MANIFEST)):
        return "array_record"
    if storage.is_file(storage.join(path.rpartition("@")[0] or path, "dataset_info.json")):
        return "tfds"
    if storage.is_dir(path):
        lists = [name for name in storage.names(path) if name.lower().endswith((".json", ".jsonl"))]
        raise InputError(
            f"{path}: a folder with neither {shards.MANIFEST} (shards) nor dataset_info.json (TFDS); name a file in it"
            + (f": {', '.join(lists[:5])}{' ...' if len(lists) > 5 else ''}" if lists else "")
        )
    if path.lower().endswith((".csv", ".tsv")):
        raise InputError(
            f"{path}: a table, which is not read; make JSON Lines of it (.jsonl), each row an object with the keys "
            "video, question and answer"
        )
    if path.lower().endswith((*media_names.CLIPS, *STILLS)):
        raise InputError(
            f"{path}: a clip or an image, not a list of samples; give a .json or .jsonl file that names it"
        )
    return "annotations"


# --- mixture files -----------------------------------------------------------------------------------------------


def _read_yaml(path: str, entry: MixtureEntry, seed: Sequence[int], opened: _Opened) -> Mixture:
    """A mixture file of LLaVA-NeXT: `datasets`, each a `json_path` and a `sampling_strategy`.

    Paths are relative to the file's folder, media to `media_root` or else to the folder of each annotation file.
    """
    try:
        content = yaml_text.loads(json_lines.decode(storage.read_bytes(path), path)[0])
    except (FileNotFoundError, IsADirectoryError):
        raise InputError(f"{path}: no such mixture file") from None
    except ValueError as error:
        raise InputError(f"{path}: not YAML ({brief(error)})") from None
    listed = content.get("datasets") if isinstance(content, dict) else None
    if not isinstance(listed, list) or not listed:
        raise InputError(f"{path}: expected a list under 'datasets', each with 'json_path' and 'sampling_strategy'")
    parts = []
    for number, dataset in enumerate(listed):
        where = f"{path}: datasets.{number}"
        if not isinstance(dataset, dict) or not isinstance(dataset.get("json_path"), str):
            raise InputError(f"{where}: expected an object with 'json_path', found {short(dataset)}")
        if unknown := dataset.keys() - {"json_path", "sampling_strategy"}:
            raise InputError(f"{where}: unknown key {sorted(map(str, unknown))[0]!r}")
        name = dataset["json_path"]
        whole = storage.is_remote(name) or Path(name).expanduser().is_absolute()
        place = (*seed, number)
        file = name if whole else f"{storage.parent(path)}/{name}"
        source = open_source(MixtureEntry(path=file, media_root=entry.media_root), place, opened)
        chosen = sample(str(dataset.get("sampling_strategy", "all")), len(source), place, where)
        parts.append(Part(source, chosen, len(chosen)))
    return Mixture(parts, path)


def sample(strategy: str, total: int, seed: Sequence[int], where: str) -> np.ndarray:
    """Indices, ascending, that `all`, `first:N`, `end:N`, `random:N` or one of these with `N%` takes of `total`.

    A share is rounded up, and nothing is taken twice.

    Raises:
      InputError: it is none of these.
    """
    match = re.fullmatch(r"all|random|(first|end|random):(?:([0-9]+)|([0-9]+(?:\.[0-9]+)?)%)", strategy.strip())
    if match is None:
        raise InputError(
            f"{where}: sampling_strategy must be all, first:N, end:N or random:N, N a number or a share like 10%, "
            f"found {strategy!r}"
        )
    how, number, share = match.groups()
    if how is None:
        return np.arange(total)
    count = int(number) if number else math.ceil(Fraction(share) * total / 100)
    count = min(count, total)
    if how == "random":
        return np.sort(np.random.default_rng([*seed, 2]).choice(total, count, replace=False))
    return np.arange(count) if how == "first" else np.arange(total - count, total)
