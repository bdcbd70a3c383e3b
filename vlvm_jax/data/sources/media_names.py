"""Which file an annotation means by the name of a medium, where names and files differ slightly."""

import functools
import unicodedata
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

from absl import logging

from vlvm_jax import storage
from vlvm_jax.printing import one_line

CLIPS = (".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv", ".ts", ".3gp", ".gif")
_FILE = "file://"
_PREFIXES = ("", "v_")  # ActivityNet's files have "v_" before the ids of its annotations
_NUMBERED = ("video", "vid")  # MSR-VTT's and MSVD's files, whose annotations have numbers


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
    """The path with `/` for each backslash, and with its percent escapes resolved, where that makes a difference."""
    slashes = path.replace("\\", "/")
    found = dict.fromkeys((slashes, urllib.parse.unquote(slashes)))
    return [one for one in found if one != path and "\0" not in one]


class Folders:
    """Names of the files in folders, local or gs://. Lists each folder once."""

    def __init__(self) -> None:
        self._names: dict[str, frozenset[str]] = {}
        self._folded: dict[str, dict[str, list[str]]] = {}

    def names(self, folder: str) -> frozenset[str]:
        """Of what is in a folder; empty if there is no such folder."""
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
        found = self._folded[folder].get(_folded(name), [])
        return f"{folder}/{found[0]}" if len(found) == 1 else None

    def meant(self, path: str) -> str | None:
        """The file that a path means which does not exist as it is written; None if that cannot be told."""
        spellings = other_spellings(path)
        for one in spellings:
            if self.has(one):
                return one
        return next((found for one in (path, *spellings) if (found := self.alike(one)) is not None), None)


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


@functools.cache
def _folders() -> Folders:
    """Those of this process."""
    return Folders()


_meant: dict[str, str] = {}


def meant(path: str) -> str | None:
    """As `Folders.meant`, remembered. The first such path of a process is logged."""
    if path not in _meant and (found := _folders().meant(path)) is not None:
        logging.log_first_n(
            logging.WARNING, "%s does not exist; %s is read instead (`data check` counts such names)", 1,
            one_line(path), one_line(found),
        )  # fmt: skip
        _meant[path] = found
    return _meant.get(path)


def known(path: str) -> str | None:
    """What `meant` found for a path in this process, if it was asked."""
    return _meant.get(path)


def by_id(clip: str) -> Iterator[str]:
    """File names under which a clip of this id may be stored, the likeliest first."""
    before = (*_PREFIXES, *_NUMBERED) if clip.isdigit() else _PREFIXES
    for prefix in before:
        yield f"{prefix}{clip}"
        yield from (f"{prefix}{clip}{ending}" for ending in CLIPS)


class ClipsById:
    """Finds clips by id among a folder's files. The folder is listed when the first one is looked for.

    Attributes:
      root: the media folder.
    """

    def __init__(self, root: str):
        self.root = root

    @functools.cached_property
    def _known(self) -> frozenset[str]:
        """Raises FileNotFoundError if there is no such folder."""
        return frozenset(storage.names(self.root))

    def __call__(self, clip: str) -> str | None:
        """Name of the file with a clip of this id; None if there is none.

        Raises:
          FileNotFoundError, NotADirectoryError: there is no such folder.
        """
        return next((name for name in by_id(clip) if name in self._known), None)
