"""Which file in the media folder a benchmark means by the name of a clip."""

from pathlib import PurePosixPath

from vlvm_jax import storage
from vlvm_jax.data.sources import formats
from vlvm_jax.data.sources.records import LISTED, Name
from vlvm_jax.errors import InputError

ENDINGS = (".mp4", ".avi", ".mov", ".mkv")  # in the order of the spec
_ACTIVITYNET = "v_"  # begins the names of its files, not of its annotations


class ClipFiles:
    """Files in one folder by the names that lists of questions use.

    A name is tried as it is (a file, or a folder of frames), then with each of `ENDINGS` in the place of its own, then
    both again with ActivityNet's "v_" before it. Each folder is listed once.

    Args:
      root: local or gs://.

    Raises:
      InputError: there is no such folder.
    """

    def __init__(self, root: str):
        if not storage.is_dir(root):
            raise InputError(f"--media={root}: no such folder; name the one in which the clips lie")
        self.root = root.rstrip("/")
        self._names: dict[str, frozenset[str]] = {}
        self.missing: set[str] = set()

    def path(self, name: str) -> str:
        """Of the file; of the first candidate where there is none, which `missing` has then.

        Raises:
          ValueError: the name leaves the folder.
        """
        candidates = [storage.join(self.root, one) for one in _candidates(name)]
        for path in candidates:
            if self._exists(path):
                return path
        self.missing.add(candidates[0])
        return candidates[0]

    def locate(self, _number: int, name: Name) -> str:
        """`path` for `records.parse`, which also knows clips that are lists of images."""
        if isinstance(name, str):
            return self.path(name)
        return LISTED.join(storage.join(self.root, one) for one in name)

    def _exists(self, path: str) -> bool:
        folder, _, name = path.rpartition("/")
        if folder not in self._names:
            try:
                self._names[folder] = frozenset(storage.names(folder))
            except (FileNotFoundError, NotADirectoryError):
                self._names[folder] = frozenset()
        return name in self._names[folder]


def _candidates(name: str) -> list[str]:
    folder, slash, last = name.rpartition("/")
    known = PurePosixPath(last).suffix.lower() in formats.CLIPS
    stem = last[: -len(PurePosixPath(last).suffix)] if known else last
    endings = [last, *(stem + ending for ending in ENDINGS)]
    return [f"{folder}{slash}{before}{one}" for before in ("", _ACTIVITYNET) for one in dict.fromkeys(endings)]
