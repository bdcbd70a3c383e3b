"""Are the files of a checkpoint still what was written? Asked before anything is read from it.

Several processes check a share each and come to one answer. Checkpoints from before there were manifests pass as not
verified.
"""

import json
import os
import sys
from collections.abc import Callable, Collection, Iterable

import jax
from etils import epath
from orbax.checkpoint._src.path import atomicity

from vlvm_jax import manifest, storage
from vlvm_jax.errors import InputError
from vlvm_jax.parallel import processes
from vlvm_jax.weights import checksums

_verified: dict[str, str] = {}  # folders that this process has checked, and what it was that it checked
_said: set[str] = set()


class Damaged(InputError):
    """Files of a checkpoint are damaged.

    Attributes:
      problem: which, without the checkpoint's name.
    """

    def __init__(self, folder: str, problem: str, advice: str = ""):
        super().__init__(f"{folder}: damaged: {problem}{advice}")
        self.problem = problem


def check_step(folder: epath.Path, under: Collection[str] = (), advice: str = "") -> bool:
    """Whether a step of a training run is verified; False for one from before there were manifests.

    Args:
      under: the items whose content is compared; all by default.
      advice: what the message ends with.

    Raises:
      Damaged: a file is not what was written.
    """
    return _check(folder, _expects(folder), under, advice)


def check_import(folder: epath.Path, expected: bool, advice: str = "") -> bool:
    """The same for an import.

    Args:
      expected: whether there must be a manifest.
    """
    return _check(folder, lambda: expected, (), advice)


def check_beside_stages(workdir: epath.Path, advice: str = "") -> None:
    """Raises `Damaged` for a run's config and tokenizer files, if `seal` has noted them and they have changed."""
    if damages := manifest.check_listed(os.fspath(workdir)):
        raise Damaged(os.fspath(workdir), manifest.describe(damages), advice)


def seal(workdir: epath.Path, folder: str) -> None:
    """Writes the manifest of a run's `config.json` and of the files in `folder`, which stay as they are from now on."""
    root = os.fspath(workdir)
    names = ["config.json", *(f"{folder}/{name}" for name in storage.listing(f"{root}/{folder}"))]
    manifest.write(root, {name: manifest.of_bytes(storage.read_bytes(f"{root}/{name}")) for name in names})


def newest_whole(
    steps: Iterable[epath.Path], under: Collection[str] = (), first: int | None = None
) -> epath.Path | None:
    """The newest step that is not damaged; newer ones are renamed aside, and that is said. All processes agree.

    Args:
      steps: folders, by step.
      first: a step that is wanted before any newer one.

    Raises:
      InputError: there are steps, and all of them are damaged. None of them is renamed then.
    """
    damaged: list[tuple[epath.Path, str]] = []
    for step in sorted(steps, key=lambda path: (int(path.name) == first, int(path.name)), reverse=True):
        try:
            check_step(step, under)
        except Damaged as error:
            damaged.append((step, error.problem))
            continue
        for path, problem in damaged:
            _set_aside(path, problem)
        if damaged:
            _warn(f"{step.parent}: taking step {step.name}, the newest one that is not damaged")
        return step
    if damaged:
        steps_said = "; ".join(f"{path.name}: {problem}" for path, problem in damaged)
        raise InputError(
            f"{damaged[0][0].parent}: every step is damaged ({steps_said}); restore one from a copy, or remove the "
            "folder to train the stage anew"
        )
    return None


def note_unverified(folder: object) -> None:
    """Says, once, that nobody can tell whether a checkpoint is damaged."""
    if str(folder) not in _said:
        _said.add(str(folder))
        _warn(f"{folder}: not verified: it was written without a manifest")


def _check(folder: epath.Path, expects: Callable[[], bool], under: Collection[str], advice: str) -> bool:
    path, count = os.fspath(folder), jax.process_count()
    try:
        mark = f"{sorted(under)} {storage.fingerprint(path)}"
    except FileNotFoundError:
        mark = ""
    if mark and _verified.get(path) == mark:
        return True
    damages = manifest.check(path, under=under, share=(jax.process_index(), count), unlisted=checksums.UNLISTED)
    if damages is None and expects():
        damages = [manifest.Damage(manifest.FILE, "missing")]
    problem = manifest.describe(damages) if damages else ""
    if count > 1:
        problem = processes.first_text(problem)
    if problem:
        raise Damaged(path, problem, advice)
    if damages is None:
        note_unverified(folder)
        return False
    _verified[path] = mark
    return True


def _expects(step: epath.Path) -> Callable[[], bool]:
    """Whether a step was saved with a manifest, by the mark in its metadata; old ones have none."""

    def expects() -> bool:
        try:
            metadata = json.loads((step / checksums.METADATA).read_text())
            return "manifest" in (metadata.get("custom_metadata") or {})
        except FileNotFoundError:  # Orbax says what this is
            return False
        except (ValueError, AttributeError):
            raise Damaged(os.fspath(step), f"{checksums.METADATA}: not what was written") from None

    return expects


def _set_aside(step: epath.Path, problem: str) -> None:
    """Renames a step so that nothing counts it, and nothing deletes it either."""
    target = step.parent / f"{step.name}{manifest.DAMAGED}"
    number = 1
    while target.exists():
        number += 1
        target = step.parent / f"{step.name}{manifest.DAMAGED}.{number}"
    processes_wait = jax.process_count() > 1
    if processes_wait:
        processes.wait_for_all(f"look for {target.name}")  # before it is there
    if processes.primary():
        try:
            storage.rename(os.fspath(step), os.fspath(target), first=atomicity.COMMIT_SUCCESS_FILE)
        except OSError as error:
            raise InputError(f"{step}: damaged: {problem}; it cannot be renamed aside ({error.strerror})") from None
    if processes_wait:
        processes.wait_for_all(f"renamed {target.name}")
    _warn(f"{step}: DAMAGED: {problem}; renamed to {target.name}")


def _warn(message: str) -> None:
    if processes.primary():
        print(f"warning: {message}", file=sys.stderr, flush=True)
