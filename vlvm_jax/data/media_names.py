"""Finds the file that an annotation means by the name of a medium if the two differ slightly."""

import contextlib
import functools
import unicodedata
import urllib.parse
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from absl import logging

from vlvm_jax import storage
from vlvm_jax.printing import one_line

CLIPS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv", ".ts", ".3gp", ".gif")
ENDINGS = (*CLIPS, ".webp", ".avif", ".apng")  # in the order in which they are tried; the last may be stills too
_FILE = "file://"
ACTIVITYNET = "v_"  # begins the names of its files, but not the ids in its annotations
NUMBERED = ("video", "vid")  # begin the names of MSR-VTT's and MSVD's files, whose annotations have numbers


def without_scheme(name: str) -> str:
    """A name without `file://`; any other name unchanged."""
    return name.removeprefix(_FILE).removeprefix("localhost") if name.startswith(_FILE) else name


def join(root: str, name: str) -> str:
    """A name in a folder, as `storage.join`; an absolute name may be in a folder that is given relative to this one.

    Raises:
      ValueError: the name leaves the folder.
    """
    if name.startswith("/") and not storage.is_remote(root):
        return storage.join(str(Path(root).absolute()), name)
    return storage.join(root, name)


def other_spellings(path: str) -> list[str]:
    """The path with `/` for each backslash, and with its percent escapes resolved too, if that changes it."""
    slashes = path.replace("\\", "/")
    spellings = dict.fromkeys((slashes, urllib.parse.unquote(slashes)))
    return [one for one in spellings if one != path and "\0" not in one]


class Folders:
    """Names of the files in folders, local or gs://. Lists each folder once."""

    def __init__(self) -> None:
        self._names: dict[str, frozenset[str]] = {}
        self._folded: dict[str, dict[str, list[str]]] = {}

    def names(self, folder: str) -> frozenset[str]:
        """Names in a folder; empty if there is no such folder."""
        if folder not in self._names:
            try:
                self._names[folder] = frozenset(storage.names(folder))
            except (FileNotFoundError, NotADirectoryError):
                self._names[folder] = frozenset()
        return self._names[folder]

    def has(self, path: str) -> bool:
        folder, _, name = path.rpartition("/")
        return bool(folder) and name in self.names(folder)

    def alike(self, path: str) -> str | None:
        """The one path that differs from this one in letter case or Unicode normalization alone, if there is one.

        In a bucket only the last part of the path is compared, so that one folder is listed.
        """
        folder, _, name = path.rpartition("/")
        if not name or not folder:
            return None
        if not self.names(folder) and not storage.is_remote(path):
            other = self.alike(folder)
            if other is None:
                return None
            folder = other
        if folder not in self._folded:
            folded: dict[str, list[str]] = {}
            for one in self.names(folder):
                folded.setdefault(_folded(one), []).append(one)
            self._folded[folder] = folded
        names = self._folded[folder].get(_folded(name), [])
        return f"{folder}/{names[0]}" if len(names) == 1 else None

    def meant(self, path: str) -> str | None:
        """The file meant by a path that does not exist as it is written; None if that is unclear."""
        spellings = other_spellings(path)
        for one in spellings:
            if self.has(one):
                return one
        return next((file for one in (path, *spellings) if (file := self.alike(one)) is not None), None)


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


@functools.cache
def _folders() -> Folders:
    """The folders that this process has listed."""
    return Folders()


_meant: dict[str, str] = {}


def meant(path: str) -> str | None:
    """`Folders.meant`, cached. The first such path of a process is logged."""
    if path not in _meant and (file := _folders().meant(path)) is not None:
        logging.log_first_n(
            logging.WARNING,
            "%s does not exist; %s is read instead (`data check` counts such names)",
            1,
            one_line(path),
            one_line(file),
        )
        _meant[path] = file
    return _meant.get(path)


def known(path: str) -> str | None:
    """What `meant` found for a path in this process, if it was asked."""
    return _meant.get(path)


class ClipFinder:
    """Finds the clips in one folder by the names or ids that annotations and lists of questions give them.

    A name is tried as it is (a file, or a folder of frames), then with each ending of clips in the place of its own,
    then both again with ActivityNet's "v_" before it, a number also with MSR-VTT's "video" and MSVD's "vid". After that
    backslashes count as `/`, percent escapes as what they stand for, and letter case does not count. Each folder is
    listed once.

    Attributes:
      root: the folder, local or gs://.
    """

    def __init__(self, root: str):
        self.root = root.rstrip("/")
        self._folders = Folders()

    def exists(self) -> bool:
        return bool(self._folders.names(self.root)) or storage.is_dir(self.root)

    def first(self, name: str) -> str:
        """The path that is tried first.

        Raises:
          ValueError: the name leaves the folder.
        """
        return join(self.root, without_scheme(name))

    def find(self, name: str) -> tuple[str | None, bool]:
        """The path of the clip, None if there is none, and whether only another spelling of the name found it.

        Raises:
          ValueError: the name leaves the folder.
        """
        plain = without_scheme(name)
        paths = [join(self.root, one) for one in _file_names(plain)]
        if (file := next(filter(self._folders.has, paths), None)) is not None:
            return file, False
        others = [path for one in other_spellings(plain) for path in self._inside(one)]
        if (file := next(filter(self._folders.has, others), None)) is not None:
            return file, True
        alike = (file for path in (*paths, *others) if (file := self._folders.alike(path)) is not None)
        file = next(alike, None)
        return file, file is not None

    def _inside(self, name: str) -> Iterator[str]:
        for one in _file_names(name):
            with contextlib.suppress(ValueError):
                yield join(self.root, one)


def _file_names(name: str) -> list[str]:
    """Names under which the clip of this name or id may be stored, the likeliest first."""
    folder, slash, last = name.rpartition("/")
    known = PurePosixPath(last).suffix.lower() in ENDINGS
    stem = last[: -len(PurePosixPath(last).suffix)] if known else last
    endings = dict.fromkeys((last, *(stem + ending for ending in ENDINGS)))
    before = ("", ACTIVITYNET, *(NUMBERED if stem.isdigit() else ()))
    return [f"{folder}{slash}{one}{ending}" for one in before for ending in endings]


class ClipsById:
    """Finds clips by id for annotations; see `ClipFinder`. The folder is listed when the first one is looked for."""

    def __init__(self, root: str):
        self._clips = ClipFinder(root)

    def __call__(self, clip: str) -> str | None:
        """Name, in the folder, of the file with a clip of this id; None if there is none.

        Raises:
          FileNotFoundError: there is no such folder.
        """
        if not self._clips.exists():
            raise FileNotFoundError(self._clips.root)
        try:
            file, _ = self._clips.find(clip)
        except ValueError:  # no id, but a path out of the folder
            return None
        return None if file is None else file.removeprefix(f"{self._clips.root}/")
