"""Files by path or `gs://` URI. No jax in here: loader workers import it.

A file that is not there is the caller's `FileNotFoundError`; storage that fails though asked again and again is a
`StorageError`, which is nobody's bad sample: the run ends and can be continued. What is tried anew: `gcs`.
"""

import contextlib
import hashlib
import io
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast

import fsspec

from vlvm_jax.errors import InputError, Interrupted

REMOTE = "gs://"
failing = threading.Event()  # since a `StorageError`, until storage works again: what asks meanwhile asks once
PARTIAL = ".partial"  # how the name of a local file ends that is being written
_BLOCK = 2**20  # bytes asked for at once
_EVERY = 15.0  # seconds between two uploads of logs

for _protocol in ("gs", "gcs"):
    fsspec.register_implementation(_protocol, "vlvm_jax.gcs.FileSystem", clobber=True)


class StorageError(Interrupted):
    """Storage kept failing: the same command, run again, continues."""

    at_once = True  # some may wait for storage

    def __init__(self, message: str):
        super().__init__(message)
        failing.set()


def user_cache() -> Path:
    """The folder in which this user keeps what can be made again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vlvm_jax"


def is_remote(path: str) -> bool:
    """Whether a path is a `gs://` URI."""
    return path.startswith(REMOTE)


def join(root: str, name: str) -> str:
    """A name below a root, both with `/`; an absolute name stays as it is.

    Raises:
      ValueError: the name leaves the root.
    """
    whole = is_remote(name) or PurePosixPath(name).is_absolute()
    path = name if whole else f"{root.rstrip('/')}/{name}"
    inside = path == root or path.startswith(f"{root.rstrip('/')}/")
    if not inside or ".." in PurePosixPath(name).parts:
        raise ValueError(f"{name!r} leaves {root}")
    return path


def parent(path: str) -> str:
    """The folder in which a file lies."""
    return path.rpartition("/")[0] if is_remote(path) else str(Path(path).parent)


def is_file(path: str) -> bool:
    """Whether there is a file of this name."""
    return _filesystem(path).isfile(path)


def is_dir(path: str) -> bool:
    """Whether there is a folder of this name."""
    return _filesystem(path).isdir(path)


def has_bucket(path: str) -> bool:
    """Whether there is the bucket of a `gs://` URI."""
    return _filesystem(path).has_bucket(path)


def check_output(path: str, where: str, *, folder: bool = True) -> None:
    """Raises `InputError` if nothing can be written at a path: before hours of work, not after them.

    Args:
      where: the flag that named the path, for messages.
      folder: whether a folder will be written there, which may exist already, or a file.
    """
    kind = "folder" if folder else "file"
    if not path.strip():
        raise InputError(f"{where} is empty; name a {kind}")
    if not path.strip("/") and folder:
        raise InputError(f"{where}={path}: the root of all folders; name another")
    if is_remote(path):
        if not path.removeprefix(REMOTE).strip("/"):
            raise InputError(f"{where}={path}: names no bucket")
        return
    if "://" in path:
        raise InputError(f"{where}={path}: expected a local {kind} or {REMOTE}...")
    try:
        place = Path(path).expanduser()
        if place.exists() and place.is_dir() != folder:
            raise InputError(f"{where}={path}: there is a {'file' if folder else 'folder'} of this name; name another")
        if not folder and place.exists():
            with place.open("ab"):
                return
        while not place.exists():
            place = place.parent
        if not place.is_dir():
            raise InputError(f"{where}={path}: {place} is a file; name another {kind}")
        # Made and removed at once, in the longest folder that there is: permissions alone do not tell (/proc).
        with tempfile.TemporaryDirectory(dir=place) as made:
            for part in Path(path).expanduser().parts[len(place.parts) :]:
                made = Path(made) / part
                made.mkdir()
    except (OSError, ValueError, RuntimeError) as error:
        if isinstance(error, InputError):
            raise
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"{where}={path}: nothing can be written there ({reason})") from None


def names(folder: str) -> list[str]:
    """Names, sorted, of what lies in a folder.

    Raises:
      FileNotFoundError: there is no such folder.
    """
    return sorted(str(path).rstrip("/").rpartition("/")[2] for path in _filesystem(folder).ls(folder, detail=False))


def glob(pattern: str) -> list[str]:
    """Files, sorted, whose path fits a pattern with `*` in it."""
    paths = sorted(map(str, _filesystem(pattern).glob(pattern)))
    return [f"{REMOTE}{path}" for path in paths] if is_remote(pattern) else paths


def open_binary(path: str) -> BinaryIO:
    """A file open for reading, seekable; of a remote one only the parts that are read are fetched, a small one at once.

    Raises:
      FileNotFoundError: there is no such file.
    """
    if not is_remote(path):
        return Path(path).open("rb")
    return cast(BinaryIO, io.BufferedReader(_Remote(path), _BLOCK))


def read_bytes(path: str) -> bytes:
    """A whole file.

    Raises:
      FileNotFoundError: there is no such file.
    """
    return cast(bytes, _filesystem(path).cat_file(path))


def read_text(path: str) -> str:
    """A whole UTF-8 file; what is not UTF-8 in it is replaced.

    Raises:
      FileNotFoundError: there is no such file.
    """
    return read_bytes(path).decode("utf-8", errors="replace")


def size(path: str) -> int:
    """Bytes in a file.

    Raises:
      FileNotFoundError: there is no such file.
    """
    return cast(int, _filesystem(path).size(path))


@contextlib.contextmanager
def writing(path: str) -> Iterator[str]:
    """The name of a local file to write; when that is done it stands under `path`, whole or not at all."""
    if is_remote(path):
        with tempfile.TemporaryDirectory() as folder:
            local = f"{folder}/{path.rpartition('/')[2]}"
            yield local
            _filesystem(path).put_file(local, path)
        return
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{os.getpid()}{PARTIAL}")
    try:
        yield str(partial)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def sweep(folder: str) -> None:
    """Removes what killed processes left half-written under a local folder, to which nobody writes any more."""
    if not is_remote(folder):
        for file in Path(folder).rglob(f".*{PARTIAL}"):
            file.unlink(missing_ok=True)


def sha256(path: str) -> str:
    """Of a file's content, in hexadecimal digits.

    Raises:
      FileNotFoundError: there is no such file.
    """
    with open_binary(path) as file:
        return hashlib.file_digest(cast(io.BufferedReader, file), "sha256").hexdigest()


def fingerprint(folder: str) -> str:
    """Hash of names, sizes and times (in a bucket generations) of all files below a folder; reads none of them."""
    infos = _filesystem(folder).find(folder, detail=True)
    marks = sorted((name, info["size"], str(info.get("generation", info.get("mtime")))) for name, info in infos.items())
    return hashlib.sha256(repr(marks).encode()).hexdigest()


def listing(folder: str) -> dict[str, tuple[int, str | None]]:
    """Size and, in a bucket, base64 CRC-32C of every file below a folder, by name relative to it. Reads no file."""
    if is_remote(folder):
        infos = _filesystem(folder).find(folder, detail=True)
        start = len(folder.removeprefix(REMOTE).rstrip("/")) + 1
        return {name[start:]: (info["size"], info.get("crc32c")) for name, info in infos.items()}
    sizes = {}
    for root, _, files in os.walk(folder, followlinks=True):
        for name in files:
            path = f"{root}/{name}"
            sizes[path[len(folder) + 1 :]] = os.stat(path).st_size, None  # noqa: PTH116 - a third of the time
    return sizes


def rename(folder: str, target: str, first: str) -> None:
    """Renames a folder. In a bucket, where that is impossible, every object is moved: `first` first, the others after.

    Raises:
      OSError: a local folder cannot be renamed.
    """
    if not is_remote(folder):
        Path(folder).rename(target)
        return
    names = sorted(listing(folder), key=lambda name: (name != first, name))
    for name in names:
        _filesystem(folder).cp_file(f"{folder}/{name}", f"{target}/{name}")
        _filesystem(folder).rm_file(f"{folder}/{name}")


def write_bytes(path: str, data: bytes) -> None:
    """Writes a whole file: what is there under the name is the old or the new one, never a part. Makes its folder."""
    if is_remote(path):
        _filesystem(path).pipe_file(path, data)
        return
    with writing(path) as local:
        Path(local).write_bytes(data)


def write_text(path: str, text: str) -> None:
    """`write_bytes` of UTF-8."""
    write_bytes(path, text.encode())


def upload(folder: Path, target: str, last: str) -> None:
    """Copies all files of a local folder below a `gs://` URI, many at a time; `last` is there when all are."""
    names = [str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()]
    names.remove(last)
    for some in (names, [last]):
        _filesystem(target).put([str(folder / name) for name in some], [f"{target}/{name}" for name in some])


class _Remote(io.RawIOBase):
    """A remote file; its first block is fetched when it is opened and kept."""

    def __init__(self, path: str):
        self._path, self._place = path, 0
        self._head, self._size = _filesystem(path).read_range(path, 0, _BLOCK)

    def readinto(self, buffer: Any) -> int:
        data = self._read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def readall(self) -> bytes:  # the base class's asks for 8 KiB at a time
        data = b""
        while more := self._read(self._size - self._place):
            data += more
        return data

    def _read(self, most: int) -> bytes:
        start, stop = self._place, min(self._place + most, self._size)
        data = self._head[start:stop]
        if not data and start < stop:
            data, _ = _filesystem(self._path).read_range(self._path, start, stop)
        self._place += len(data)
        return data

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._place = max(0, {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._size}[whence] + offset)
        return self._place

    def tell(self) -> int:
        return self._place

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True


class Logs:
    """A folder for files that grow. Of a local folder it is the folder itself; of a remote one, where nothing can be
    appended to, a copy on this machine, whose files are written anew up there in the background and by `flush`.

    Left with an exception in flight, it saves what it can and says nothing.

    Attributes:
      folder: where to write; names that end in `.new` or `PARTIAL` stay here.
    """

    def __init__(self, folder: str):
        self._target = folder if is_remote(folder) else None
        self.folder = Path(tempfile.mkdtemp(prefix="vlvm_jax-logs-") if self._target else folder)
        self._known: dict[Path, tuple[int, int]] = {}  # `_mark` of what is the same here and there
        self._mine: set[Path] = set()
        self._uploading = threading.Lock()
        self._closed = threading.Event()
        self._fault: Exception | None = None

    def __enter__(self) -> "Logs":
        if self._target:
            threading.Thread(target=self._follow, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._closed.set()
        with contextlib.suppress(StorageError) if kind else contextlib.nullcontext():
            self.flush()
        if self._target:
            shutil.rmtree(self.folder, ignore_errors=True)

    def fetch(self, pattern: str) -> None:
        """Brings the files up there that are named so, but for those that are written here."""
        if not self._target:
            return
        for path in _filesystem(self._target).glob(f"{self._target}/{pattern}"):
            file = self.folder / str(path).rpartition("/")[2]
            if file not in self._mine and (not file.exists() or _mark(file) == self._known.get(file)):
                file.write_bytes(read_bytes(f"{REMOTE}{path}"))
                self._known[file] = _mark(file)

    def check(self) -> None:
        """Raises what went wrong in the background; costs nothing."""
        if self._fault is not None:
            raise self._fault

    def flush(self) -> None:
        """Returns when all that is written here is up there.

        Raises:
          StorageError: it cannot be.
        """
        self.check()
        if self._target:
            self._upload(self._target)

    def _follow(self) -> None:
        pause = _EVERY
        while not self._closed.wait(pause):
            start = time.monotonic()
            try:
                self._upload(str(self._target))
            except Exception as error:  # for `check`
                self._fault = error
                return
            pause = max(_EVERY, 20 * (time.monotonic() - start))  # what grows large is written more seldom

    def _upload(self, target: str) -> None:
        with self._uploading:
            for file in sorted(self.folder.rglob("*")):
                if file.is_dir() or file.suffix in (".new", PARTIAL):
                    continue
                mark = _mark(file)
                if mark != self._known.get(file):
                    self._mine.add(file)
                    write_bytes(f"{target}/{file.relative_to(self.folder).as_posix()}", file.read_bytes())
                    self._known[file] = mark


def _mark(file: Path) -> tuple[int, int]:
    stat = file.stat()
    return stat.st_size, stat.st_mtime_ns


def _filesystem(path: str) -> Any:
    return fsspec.filesystem("gs" if is_remote(path) else "file")  # fsspec keeps one of each
