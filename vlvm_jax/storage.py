"""Files by path or `gs://` URI, for reading. No jax in here: loader workers import it.

A file that is not there is the caller's `FileNotFoundError`; storage that fails though asked again and again is a
`StorageError`, which is nobody's bad sample: the run ends and can be continued.
"""

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO, cast

import fsspec

from vlvm_jax.errors import Interrupted

REMOTE = "gs://"
_TIMEOUT = 20.0  # seconds without an answer after which a request is made anew
_BLOCK = 2**20  # bytes asked for at once


class StorageError(Interrupted):
    """Storage kept failing: the same command, run again, continues."""


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
    with _faults(path):
        return _filesystem(path).isfile(path)


def is_dir(path: str) -> bool:
    """Whether there is a folder of this name."""
    with _faults(path):
        return _filesystem(path).isdir(path)


def names(folder: str) -> list[str]:
    """Names, sorted, of what lies in a folder.

    Raises:
      FileNotFoundError: there is no such folder.
    """
    with _faults(folder):
        return sorted(str(path).rstrip("/").rpartition("/")[2] for path in _filesystem(folder).ls(folder, detail=False))


def open_binary(path: str) -> BinaryIO:
    """A file open for reading, seekable; of a remote one only the parts that are read are fetched.

    Raises:
      FileNotFoundError: there is no such file.
    """
    if not is_remote(path):
        return Path(path).open("rb")
    with _faults(path):
        file = _filesystem(path).open(path, "rb", block_size=_BLOCK, cache_type="readahead")
    return cast(BinaryIO, io.BufferedReader(_Remote(file, path), _BLOCK))


def read_bytes(path: str) -> bytes:
    """A whole file.

    Raises:
      FileNotFoundError: there is no such file.
    """
    with _faults(path):
        return cast(bytes, _filesystem(path).cat_file(path))


def read_text(path: str) -> str:
    """A whole UTF-8 file; what is not UTF-8 in it is replaced.

    Raises:
      FileNotFoundError: there is no such file.
    """
    return read_bytes(path).decode("utf-8", errors="replace")


class _Remote(io.RawIOBase):
    """A remote file whose faults are `StorageError`."""

    def __init__(self, file, path: str):
        self._file, self._path = file, path

    def readinto(self, buffer) -> int:
        with _faults(self._path):
            data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


def _filesystem(path: str) -> fsspec.AbstractFileSystem:
    if is_remote(path):
        return fsspec.filesystem("gs", requests_timeout=_TIMEOUT)  # fsspec keeps one for each process
    return fsspec.filesystem("file")


@contextlib.contextmanager
def _faults(path: str) -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, IsADirectoryError, StorageError):
        raise
    except Exception as error:
        if not is_remote(path):
            raise
        said = " ".join(str(error).split())[:200] or type(error).__name__
        raise StorageError(f"{path}: storage does not answer ({said})") from None
