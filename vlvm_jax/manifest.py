"""Manifests of checkpoints: size and CRC-32C of every file, and the arrays in it. No jax.

A manifest is a file of JSON lines: a header, one line per file, and the checksum of all lines before the last. The
checksums are written as Google Cloud Storage writes them (big-endian, base64). A file that holds several arrays is
divided into parts with a checksum each, so that damage is traced to an array.
"""

import base64
import dataclasses
import json
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import google_crc32c

from vlvm_jax import storage

FILE = "manifest.jsonl"
FORMAT = 1
DAMAGED = ".damaged"  # how the name of a folder ends that was renamed aside
_BLOCK = 1 << 18  # bytes of which the checksum is computed at once: they stay in a core's cache between the two
_TASK = 64 << 20  # bytes that one thread takes at a time
_SMALL = 8 << 20  # bytes of files that are read in one go
_THREADS = min(16, 2 * (os.cpu_count() or 1))

Extent = tuple[int, int, str]  # offset, size, array


@dataclasses.dataclass(frozen=True)
class Entry:
    """One file.

    Attributes:
      parts: (size, CRC-32C, array) of the consecutive pieces that make the file. The array is "" between arrays.
      values: of a JSON file that is still amended when the manifest has been written, the keys that stay.
    """

    parts: tuple[tuple[int, int, str], ...]
    values: Mapping[str, Any] | None = None

    @property
    def size(self) -> int:
        return sum(size for size, *_ in self.parts)

    @property
    def crc32c(self) -> int:
        """Of the whole file."""
        return _joined((size, crc) for size, crc, _ in self.parts)

    @property
    def arrays(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(array for *_, array in self.parts if array))


@dataclasses.dataclass(frozen=True)
class Damage:
    """One damaged file, and those of its arrays that are."""

    file: str
    problem: str
    arrays: tuple[str, ...] = ()


class DamagedManifest(Exception):
    """The manifest itself is damaged; the message says how."""


# --- measuring -------------------------------------------------------------------------------------------------------


def measure(
    folder: str,
    names: Iterable[str],
    extents: Mapping[str, Sequence[Extent]] | None = None,
    array_of: Callable[[str], str | None] = lambda name: None,
) -> dict[str, Entry]:
    """Reads local files and returns their entries.

    Args:
      names: relative to the folder.
      extents: where arrays lie in files that hold several, by name; sorted by offset.
      array_of: the array to which any other file belongs.
    """
    known = extents or {}
    pieces = {}
    for name in names:
        size = os.path.getsize(f"{folder}/{name}")  # noqa: PTH202
        pieces[name] = _pieces(size, known[name]) if name in known else [(size, array_of(name) or "")]
    entries = {}
    for name, sums in _checksums(folder, pieces).items():
        assert None not in sums, f"{folder}/{name} changed while it was read"
        entries[name] = Entry(
            tuple((size, crc, array) for (size, array), crc in zip(pieces[name], sums, strict=True) if crc is not None)
        )
    return entries


def of_bytes(data: bytes) -> Entry:
    """The entry of a file with this content."""
    return Entry(((len(data), google_crc32c.value(data), ""),))


def of_bucket(folder: str, array_of: Callable[[str], str | None] = lambda name: None) -> dict[str, Entry]:
    """Entries of what a folder in a bucket holds, by the checksums that the bucket has; reads no file."""
    listing = storage.listing(folder).items()
    return {name: Entry(((size, _decode(crc or ""), array_of(name) or ""),)) for name, (size, crc) in listing}


def _pieces(size: int, extents: Sequence[Extent]) -> list[tuple[int, str]]:
    """(size, array) of the consecutive pieces of a file."""
    pieces, end = [], 0
    for offset, length, array in extents:
        if offset > end:
            pieces.append((offset - end, ""))
        pieces.append((length, array))
        end = offset + length
    if size > end or not pieces:
        pieces.append((size - end, ""))
    return pieces


def _checksums(folder: str, pieces: Mapping[str, Sequence[tuple[int, str]]]) -> dict[str, list[int | None]]:
    """CRC-32C of every piece; None where the file ends before it. Many files at a time.

    Raises:
      OSError: a file cannot be read.
    """
    tasks: list[tuple[str, int, list[int]]] = []  # file, offset, sizes
    for name, layout in pieces.items():
        start, offset, sizes = 0, 0, []
        for size, _ in layout:
            if sizes and offset + size - start > _TASK:
                tasks.append((name, start, sizes))
                start, sizes = offset, []
            sizes.append(size)
            offset += size
        tasks.append((name, start, sizes))
    if sum(size for *_, sizes in tasks for size in sizes) < _SMALL:
        done = [_read(folder, *task) for task in tasks]  # threads would cost more than they save
    else:
        with ThreadPoolExecutor(_THREADS) as pool:
            done = list(pool.map(lambda task: _read(folder, *task), tasks))
    checksums: dict[str, list[int | None]] = {name: [] for name in pieces}
    for (name, *_), sums in zip(tasks, done, strict=True):
        checksums[name] += sums
    return checksums


def _read(folder: str, name: str, offset: int, sizes: Sequence[int]) -> list[int | None]:
    sums: list[int | None] = []
    with Path(folder, name).open("rb", buffering=0) as file:
        if offset:
            file.seek(offset)
        held = b""
        if sum(sizes) <= _SMALL:
            held = _exactly(file, sum(sizes))
            place = 0
            for size in sizes:
                piece = held if len(sizes) == 1 else held[place : place + size]
                sums.append(google_crc32c.value(piece) if len(piece) == size else None)
                place += size
            return sums
        for size in sizes:
            crc, left = 0, size
            while left and (block := file.read(min(_BLOCK, left))):
                crc, left = google_crc32c.extend(crc, block), left - len(block)
            sums.append(None if left else crc)
    return sums


def _exactly(file: Any, size: int) -> bytes:
    data = file.read(size)
    while len(data) < size and (more := file.read(size - len(data))):
        data += more
    return data


def _joined(pieces: Iterable[tuple[int, int]]) -> int:
    """CRC-32C of consecutive pieces together, from their sizes and checksums."""
    whole = 0
    for size, crc in pieces:
        whole = _product(_power(size), whole) ^ crc if whole else crc
    return whole


# Appending n bytes multiplies a checksum by x^8n modulo the polynomial (zlib's crc32_combine, with CRC-32C's).
_POLYNOMIAL = 0x82F63B78


def _product(a: int, b: int) -> int:
    result, mask = 0, 1 << 31
    while True:
        if a & mask:
            result ^= b
            if not a & (mask - 1):
                return result
        if not mask:
            return result
        mask >>= 1
        b = (b >> 1) ^ _POLYNOMIAL if b & 1 else b >> 1


def _squares() -> list[int]:
    powers = [1 << 23]  # x^8
    while len(powers) < 48:
        powers.append(_product(powers[-1], powers[-1]))
    return powers


_BYTES = _squares()  # x^(8 * 2^k)


def _power(size: int) -> int:
    result, k = 1 << 31, 0
    while size:
        if size & 1:
            result = _product(_BYTES[k], result)
        size >>= 1
        k += 1
    return result


# --- the file --------------------------------------------------------------------------------------------------------


def encode(crc: int) -> str:
    """A checksum as Google Cloud Storage writes it."""
    return base64.b64encode(crc.to_bytes(4, "big")).decode()


def _decode(text: str) -> int:
    return int.from_bytes(base64.b64decode(text, validate=True), "big")


def dump(entries: Mapping[str, Entry]) -> bytes:
    """The content of a manifest."""
    lines = [json.dumps({"format": FORMAT, "files": len(entries)})]
    for name, entry in sorted(entries.items()):
        if entry.values is not None:
            lines.append(json.dumps({"file": name, "values": dict(entry.values)}))
            continue
        (_, crc, array), *others = entry.parts
        values: dict[str, Any] = {"file": name, "size": entry.size}
        if others:
            values["parts"] = [[size, encode(crc), array] for size, crc, array in entry.parts]
        else:
            values["crc32c"] = encode(crc)
            if array:
                values["array"] = array
        lines.append(json.dumps(values))
    text = "".join(f"{line}\n" for line in lines).encode()
    return text + json.dumps({"crc32c": encode(google_crc32c.value(text))}).encode() + b"\n"


def load(data: bytes) -> dict[str, Entry]:
    """The entries of a manifest.

    Raises:
      DamagedManifest: it is not what `dump` wrote.
    """
    *lines, last = data.splitlines(keepends=True) or [b""]
    content = b"".join(lines)
    if last != json.dumps({"crc32c": encode(google_crc32c.value(content))}).encode() + b"\n" or not lines:
        raise DamagedManifest("its own checksum differs")
    header = json.loads(lines[0])
    if header["format"] != FORMAT:
        raise DamagedManifest(f"format {header['format']} is of another version of vlvm_jax, which knows {FORMAT}")
    return dict(map(_entry, map(json.loads, lines[1:])))


def _entry(line: Mapping[str, Any]) -> tuple[str, Entry]:
    if "values" in line:
        return line["file"], Entry((), line["values"])
    parts = line.get("parts") or [[line["size"], line["crc32c"], line.get("array", "")]]
    return line["file"], Entry(tuple((size, _decode(crc), array) for size, crc, array in parts))


def write(folder: str, entries: Mapping[str, Entry]) -> None:
    """Writes a folder's manifest."""
    storage.write_bytes(f"{folder}/{FILE}", dump(entries))


# --- checking --------------------------------------------------------------------------------------------------------


def check(
    folder: str,
    *,
    under: Collection[str] = (),
    share: tuple[int, int] = (0, 1),
    unlisted: Collection[str] = (),
) -> list[Damage] | None:
    """Compares a folder with its manifest; returns what is damaged, or None where there is no manifest.

    Names and sizes of all files are compared. Checksums are computed of local files; of files in a bucket they are
    those that the bucket's listing gives, so nothing is fetched. Files whose name begins with a dot may be there
    without being in the manifest; nothing reads them.

    Args:
      under: folders whose content is compared; all files by default. Of others, names and sizes are.
      share: (i, n): only every n-th content, from the i-th on.
      unlisted: names that need not be in the manifest.

    Raises:
      StorageError: a bucket does not answer.
    """
    try:
        expected = load(storage.read_bytes(f"{folder}/{FILE}"))
    except FileNotFoundError:
        return None
    except DamagedManifest as error:
        return [Damage(FILE, str(error))]
    present = storage.listing(folder)
    damages = [
        Damage(name, "not in the manifest")
        for name in sorted(present.keys() - expected.keys() - {FILE, *unlisted})
        if not name.rpartition("/")[2].startswith(".")
    ]
    content: dict[str, Entry] = {}
    for name, entry in sorted(expected.items()):
        if name not in present:
            damages.append(Damage(name, "missing", entry.arrays))
        elif entry.values is not None:
            damages += _check_values(folder, name, entry.values)
        elif present[name][0] != entry.size:
            damages.append(Damage(name, f"{present[name][0]} bytes, expected {entry.size}", entry.arrays))
        elif not under or "/" not in name or name.partition("/")[0] in under:
            content[name] = entry
    chosen = {name: content[name] for name in list(content)[share[0] :: share[1]]}
    if storage.is_remote(folder):
        wrong = [name for name, entry in chosen.items() if present[name][1] != encode(entry.crc32c)]
        return damages + [Damage(name, "checksum differs", chosen[name].arrays) for name in wrong]
    return damages + _check_content(folder, chosen)


def check_listed(folder: str) -> list[Damage] | None:
    """Reads the files in the manifest of a folder that holds others too; returns as `check` does. For small files."""
    try:
        expected = load(storage.read_bytes(f"{folder}/{FILE}"))
    except FileNotFoundError:
        return None
    except DamagedManifest as error:
        return [Damage(FILE, str(error))]
    damages = []
    for name, entry in expected.items():
        try:
            there = of_bytes(storage.read_bytes(f"{folder}/{name}"))
        except FileNotFoundError:
            damages.append(Damage(name, "missing"))
            continue
        if there.size != entry.size:
            damages.append(Damage(name, f"{there.size} bytes, expected {entry.size}"))
        elif there != entry:
            damages.append(Damage(name, "checksum differs"))
    return damages


def _check_values(folder: str, name: str, values: Mapping[str, Any]) -> list[Damage]:
    try:
        content = json.loads(storage.read_bytes(f"{folder}/{name}"))
        whole = all(content[key] == value for key, value in values.items())
    except (ValueError, KeyError, TypeError, RecursionError):
        whole = False
    return [] if whole else [Damage(name, "not what was written")]


def _check_content(folder: str, entries: Mapping[str, Entry]) -> list[Damage]:
    damages = []
    pieces = {name: [(size, array) for size, _, array in entry.parts] for name, entry in entries.items()}
    try:
        sums = _checksums(folder, pieces)
    except OSError:  # one of them; which is said below
        sums = {}
        for name, layout in pieces.items():
            try:
                sums |= _checksums(folder, {name: layout})
            except OSError as error:
                damages.append(Damage(name, f"cannot be read ({error.strerror})", entries[name].arrays))
    for name, got in sums.items():
        wrong = [array for crc, (_, expected, array) in zip(got, entries[name].parts, strict=True) if crc != expected]
        if wrong:
            damages.append(Damage(name, "checksum differs", tuple(dict.fromkeys(filter(None, wrong)))))
    return damages


def describe(damages: Sequence[Damage], most: int = 3) -> str:
    """What is damaged, on one line."""
    first = damages[0]
    text = f"{first.file}: {first.problem}"
    if damages[1:]:
        text += f", and {len(damages) - 1} more files ({', '.join(damage.file for damage in damages[1:most])}"
        text += ", ...)" if damages[most:] else ")"
    arrays = list(dict.fromkeys(array for damage in damages for array in damage.arrays))
    if arrays:
        text += f"; arrays: {', '.join(arrays[:most])}" + (f" and {len(arrays) - most} more" if arrays[most:] else "")
    return text


# --- single files ----------------------------------------------------------------------------------------------------


def sealed(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a JSON file with their own checksum among them."""
    return {**values, "crc32c": encode(google_crc32c.value(_canonical(values)))}


def unsealed(text: str) -> dict[str, Any]:
    """The values of a JSON file that `sealed` made, or that was written before there were checksums.

    Raises:
      ValueError: it is damaged.
    """
    values = json.loads(text)
    if not isinstance(values, dict):
        raise ValueError("expected a JSON object")
    crc = values.pop("crc32c", None)
    if crc is not None and crc != encode(google_crc32c.value(_canonical(values))):
        raise ValueError("its checksum differs")
    return values


def _canonical(values: Mapping[str, Any]) -> bytes:
    return json.dumps(values, sort_keys=True).encode()
