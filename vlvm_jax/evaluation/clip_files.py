"""Which file in the media folder a benchmark means by the name of a clip."""

import contextlib
from collections.abc import Iterator
from pathlib import PurePosixPath

from vlvm_jax import storage
from vlvm_jax.data.sources.media_names import (
    ACTIVITYNET,
    CLIPS,
    NUMBERED,
    Folders,
    join,
    other_spellings,
    without_scheme,
)
from vlvm_jax.data.sources.records import LISTED, Name
from vlvm_jax.errors import InputError

ENDINGS = (".mp4", ".avi", ".mov", ".mkv")  # in the order of the spec


class ClipFiles:
    """Files in one folder by the names that lists of questions use.

    A name is tried as it is (a file, or a folder of frames), then with each of `ENDINGS` in the place of its own, then
    both again with ActivityNet's "v_" before it, a number also with MSR-VTT's "video" and MSVD's "vid". After that
    backslashes count as `/`, percent escapes as what they stand for, and letter case does not count. Each folder is
    listed once.

    Args:
      root: local or gs://.

    Attributes:
      missing: paths that were looked for and are not there.
      respelled: names that only a change of spelling found, and their files.

    Raises:
      InputError: there is no such folder.
    """

    def __init__(self, root: str):
        if not storage.is_dir(root):
            raise InputError(f"--media={root}: no such folder; name the one in which the clips lie")
        self.root = root.rstrip("/")
        self._folders = Folders()
        self.missing: set[str] = set()
        self.respelled: dict[str, str] = {}

    def path(self, name: str) -> str:
        """Path of the file; if there is none, the first candidate, which is added to `missing`.

        Raises:
          ValueError: the name leaves the folder.
        """
        plain = without_scheme(name)
        candidates = [join(self.root, one) for one in _candidates(plain)]
        found = next(filter(self._folders.has, candidates), None)
        if found is None and (found := self._respelled(plain, candidates)) is not None:
            self.respelled[name] = found
        if found is None:
            self.missing.add(candidates[0])
        return candidates[0] if found is None else found

    def locate(self, _number: int, name: Name) -> str:
        """`path` for `records.parse`, which also knows clips that are lists of images."""
        if isinstance(name, str):
            return self.path(name)
        return LISTED.join(join(self.root, without_scheme(one)) for one in name)

    def notes(self) -> list[str]:
        """What to tell the user: one name that was found under another spelling, and how many there are."""
        if not self.respelled:
            return []
        name, path = next(iter(self.respelled.items()))
        count = f"{len(self.respelled)} name{'s' * (len(self.respelled) > 1)} in all"
        return [f"--media={self.root}: {path} is read for {name!r} ({count})"]

    def _respelled(self, name: str, candidates: list[str]) -> str | None:
        others = [path for one in other_spellings(name) for path in self._inside(one)]
        found = next(filter(self._folders.has, others), None)
        alike = (found for path in (*candidates, *others) if (found := self._folders.alike(path)) is not None)
        return next(alike, None) if found is None else found

    def _inside(self, name: str) -> Iterator[str]:
        for one in _candidates(name):
            with contextlib.suppress(ValueError):
                yield join(self.root, one)


def _candidates(name: str) -> list[str]:
    folder, slash, last = name.rpartition("/")
    known = PurePosixPath(last).suffix.lower() in CLIPS
    stem = last[: -len(PurePosixPath(last).suffix)] if known else last
    endings = [last, *(stem + ending for ending in ENDINGS)]
    before = ("", ACTIVITYNET, *(NUMBERED if stem.isdigit() else ()))
    return [f"{folder}{slash}{one}{ending}" for one in before for ending in dict.fromkeys(endings)]
