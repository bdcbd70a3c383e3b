"""Which file in the media folder a benchmark means by the name of a clip."""

from vlvm_jax import storage
from vlvm_jax.data.media_names import ClipFinder, join, without_scheme
from vlvm_jax.data.record import LISTED, Name
from vlvm_jax.errors import InputError


class ClipFiles:
    """Files in one folder by the names that lists of questions use; see `ClipFinder`.

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
        self._clips = ClipFinder(root)
        self.root = self._clips.root
        self.missing: set[str] = set()
        self.respelled: dict[str, str] = {}

    def path(self, name: str) -> str:
        """Path of the file; if there is none, the first candidate, which is added to `missing`.

        Raises:
          ValueError: the name leaves the folder.
        """
        file, respelled = self._clips.find(name)
        if file is None:
            file = self._clips.first(name)
            self.missing.add(file)
        if respelled:
            self.respelled[name] = file
        return file

    def locate(self, _number: int, name: Name) -> str:
        """`path` for `record.parse`, which also knows clips that are lists of images."""
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
