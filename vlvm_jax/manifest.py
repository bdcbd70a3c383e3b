"""Manifests of checkpoints: size and CRC-32C of every file, and the arrays in it. No jax.

A manifest is a file of JSON lines: a header, one line per file, and the checksum of all lines before the last. The
checksums are written as Google Cloud Storage writes them (big-endian, base64), so `gcloud storage hash` shows the same
ones. A file in which several arrays lie is divided into parts, so that damage is traced to an array.
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
_BLOCK = 1 << 20  # bytes of which the checksum is computed at once, which holds Python's lock
_TASK = 64 << 20  # bytes that one thread takes at a time
_SMALL = 8 << 20  # bytes of files that are read in one go
_THREADS = min(16, 2 * (os.cpu_count() or 1))

Extent = tuple[int, int, str]  # offset, size, array


@dataclasses.dataclass(frozen=True)
class Entry:
    """One file.

    Attributes:
      crc32c: of the whole file.
      parts: (size, CRC-32C, array) of consecutive pieces; empty for files that are checked as a whole. The array is ""
        between arrays.
      values: of a JSON file that is still amended when the manifest has been written, the keys that stay.
    """

    size: int
    crc32c: int
    arrays: tuple[str, ...] = ()
    parts: tuple[tuple[int, int, str], ...] = ()
    values: Mapping[str, Any] | None = None


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
    pieces = {name: _pieces(os.path.getsize(f"{folder}/{name}"), known.get(name, ())) for name in names}  # noqa: PTH202
    sums = _checksums(folder, pieces)
    found = {}
    for name, layout in pieces.items():
        array = array_of(name)
        sizes = [size for size, _ in layout]
        found[name] = Entry(
            size=sum(sizes),
            crc32c=_joined(zip(sizes, sums[name], strict=True)),
            arrays=tuple(dict.fromkeys(a for _, a in layout if a)) or ((array,) if array else ()),
            parts=tuple((size, crc, a) for (size, a), crc in zip(layout, sums[name], strict=True))
            if name in known
            else (),
        )
    return found


def of_bytes(data: bytes) -> Entry:
    """The entry of a file with this content."""
    return Entry(len(data), google_crc32c.value(data))


def of_bucket(folder: str, array_of: Callable[[str], str | None] = lambda name: None) -> dict[str, Entry]:
    """Entries of what a folder in a bucket holds, by the checksums that the bucket has; reads no file."""
    found = {}
    for name, (size, crc) in storage.listing(folder).items():
        array = array_of(name)
        found[name] = Entry(size, _decode(crc or ""), (array,) if array else ())
    return found


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
    found: dict[str, list[int | None]] = {name: [] for name in pieces}
    for (name, *_), sums in zip(tasks, done, strict=True):
        found[name] += sums
    return found


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


def _joined(pieces: Iterable[tuple[int, int | None]]) -> int:
    """CRC-32C of consecutive pieces together, from their sizes and checksums."""
    whole = 0
    for size, crc in pieces:
        assert crc is not None, "a file changed while it was read"
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
            values: dict[str, Any] = {"file": name, "values": dict(entry.values)}
        else:
            values = {"file": name, "size": entry.size, "crc32c": encode(entry.crc32c)}
            if entry.parts:
                values["parts"] = [[size, encode(crc), array] for size, crc, array in entry.parts]
            elif entry.arrays:
                values["arrays"] = entry.arrays
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
        return line["file"], Entry(0, 0, values=line["values"])
    parts = tuple((size, _decode(crc), array) for size, crc, array in line.get("parts", ()))
    arrays = tuple(line.get("arrays", ())) or tuple(dict.fromkeys(array for *_, array in parts if array))
    return line["file"], Entry(line["size"], _decode(line["crc32c"]), arrays, parts)


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
    found = [
        Damage(name, "not in the manifest")
        for name in sorted(present.keys() - expected.keys() - {FILE, *unlisted})
        if not name.rpartition("/")[2].startswith(".")
    ]
    content: dict[str, Entry] = {}
    for name, entry in sorted(expected.items()):
        if name not in present:
            found.append(Damage(name, "missing", entry.arrays))
        elif entry.values is not None:
            found += _check_values(folder, name, entry.values)
        elif present[name][0] != entry.size:
            found.append(Damage(name, f"{present[name][0]} bytes, expected {entry.size}", entry.arrays))
        elif not under or "/" not in name or name.partition("/")[0] in under:
            content[name] = entry
    chosen = {name: content[name] for name in list(content)[share[0] :: share[1]]}
    if storage.is_remote(folder):
        wrong = [name for name, entry in chosen.items() if present[name][1] != encode(entry.crc32c)]
        return found + [Damage(name, "checksum differs", chosen[name].arrays) for name in wrong]
    return found + _check_content(folder, chosen)


def check_listed(folder: str) -> list[Damage] | None:
    """Reads the files in the manifest of a folder that holds others too; returns as `check` does. For small files."""
    try:
        expected = load(storage.read_bytes(f"{folder}/{FILE}"))
    except FileNotFoundError:
        return None
    except DamagedManifest as error:
        return [Damage(FILE, str(error))]
    found = []
    for name, entry in expected.items():
        try:
            there = of_bytes(storage.read_bytes(f"{folder}/{name}"))
        except FileNotFoundError:
            found.append(Damage(name, "missing"))
            continue
        if there.size != entry.size:
            found.append(Damage(name, f"{there.size} bytes, expected {entry.size}"))
        elif there != entry:
            found.append(Damage(name, "checksum differs"))
    return found


def _check_values(folder: str, name: str, values: Mapping[str, Any]) -> list[Damage]:
    try:
        found = json.loads(storage.read_bytes(f"{folder}/{name}"))
        whole = all(found[key] == value for key, value in values.items())
    except (ValueError, KeyError, TypeError, RecursionError):
        whole = False
    return [] if whole else [Damage(name, "not what was written")]


def _check_content(folder: str, entries: Mapping[str, Entry]) -> list[Damage]:
    found = []
    pieces = {
        name: [(size, array) for size, _, array in entry.parts] or [(entry.size, "")] for name, entry in entries.items()
    }
    try:
        sums = _checksums(folder, pieces)
    except OSError:  # one of them; which is said below
        sums = {}
        for name, layout in pieces.items():
            try:
                sums |= _checksums(folder, {name: layout})
            except OSError as error:
                found.append(Damage(name, f"cannot be read ({error.strerror})", entries[name].arrays))
    for name, got in sums.items():
        entry = entries[name]
        expected = [crc for _, crc, _ in entry.parts] or [entry.crc32c]
        wrong = [place for place, (a, b) in enumerate(zip(got, expected, strict=True)) if a != b]
        if wrong:
            arrays = [entry.parts[place][2] for place in wrong] if entry.parts else entry.arrays
            found.append(Damage(name, "checksum differs", tuple(dict.fromkeys(filter(None, arrays)))))
    return found


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
