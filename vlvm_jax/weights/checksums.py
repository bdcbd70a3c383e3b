"""Manifests (`vlvm_jax.manifest`) of what Orbax writes: every process measures its own files, process 0 the others."""

import contextlib
import json
import os
import re
import time
from collections.abc import Collection, Iterator
from typing import Any

import jax
import tensorstore as ts
from etils import epath
from orbax.checkpoint import v1 as ocp
from orbax.checkpoint._src.path import atomicity

from vlvm_jax import manifest, storage
from vlvm_jax.manifest import Entry, Extent
from vlvm_jax.parallel import processes

METADATA = "_CHECKPOINT_METADATA"  # which Orbax amends after the last hook, by the time of the commit
UNLISTED = (atomicity.COMMIT_SUCCESS_FILE,)  # written after the manifest; nothing reads what is in it
MARK: Any = {"manifest": manifest.FORMAT}  # in a step's metadata: it was saved with a manifest
_SMALL = ("config", "progress")  # items without arrays of a size
_CRC = 4  # bytes
_AMENDED = "commit_timestamp_nsecs"
_PATIENCE = 600  # seconds
_PART = "manifest.process_{}.jsonl"  # what process i > 0 tells process 0 of an item
_OF_ARRAY = re.compile(r"(.+?)(?:/zarr\.json|/\.zarray|/c(?:/\d+)*|/\d+(?:\.\d+)*)")


class StepManifest:
    """Collects the manifest of one step while Orbax saves it. Lives in every process.

    Args:
      folder: of the step, as it will be named in the end.
      items: names of what is saved as trees of arrays.
    """

    def __init__(self, folder: epath.Path, items: Collection[str]):
        self._remote = storage.is_remote(os.fspath(folder))
        suffix = "" if self._remote else atomicity.TMP_DIR_SUFFIX
        self._folder, self._items = os.fspath(folder) + suffix, tuple(items)
        self._mine: dict[str, Entry] = {}

    def context(self, context: ocp.Context) -> ocp.Context:
        """Has Orbax call this object: `_add` in each process when it has written an item, while others are still being
        written, `_commit` in process 0 when everything is written and nothing committed."""
        context.asynchronous.post_finalization_callback = self._commit
        if not self._remote:  # a bucket knows the checksums of its objects
            registry = ocp.handlers.local_registry()
            for item in self._items:
                registry.add(_measuring(self), checkpointable_name=item)
            context.checkpointables.registry = registry
        return context

    def _add(self, folder: str) -> None:
        """Measures what this process has written of an item."""
        process = jax.process_index()
        base = f"ocdbt.process_{process}"
        metadata = f"array_metadatas/process_{process}"
        # Only its own files: others' notes appear under another name first, which is gone when it is looked at.
        names = [f"{base}/{name}" for name in storage.listing(f"{folder}/{base}")]
        names += [metadata] if storage.is_file(f"{folder}/{metadata}") else []
        item = os.path.basename(folder).removesuffix(atomicity.TMP_DIR_SUFFIX)  # noqa: PTH119
        entries = manifest.measure(folder, names, extents(folder, base))
        if process:
            storage.write_bytes(f"{folder}/{_PART.format(process)}", manifest.dump(entries))
        else:
            self._mine |= {f"{item}/{name}": entry for name, entry in entries.items()}

    @processes.all_or_none()
    def _commit(self) -> None:
        if self._remote:
            entries = manifest.of_bucket(self._folder, array_of)
        else:
            entries = self._mine | dict(self._parts())
            rest = storage.listing(self._folder).keys() - entries.keys() - {METADATA}
            trees: dict[str, list[Extent]] = {}
            for item in self._items:
                for base in ("",) if self._mine else ("", "ocdbt.process_0"):
                    listed = extents(f"{self._folder}/{item}", base)
                    trees |= {f"{item}/{name}": known for name, known in listed.items()}
            entries |= manifest.measure(self._folder, rest, trees, array_of)
        manifest.write(self._folder, entries | {METADATA: Entry((), self._metadata())})

    def _metadata(self) -> dict[str, Any]:
        """What the step's metadata will hold. Orbax writes and amends them in a thread of its own, by now or soon.

        Raises:
          TimeoutError: it has not done so.
        """
        end = time.monotonic() + _PATIENCE
        while True:
            with contextlib.suppress(FileNotFoundError, ValueError):  # not or half written
                metadata = json.loads(storage.read_bytes(f"{self._folder}/{METADATA}"))
                if metadata.get("custom_metadata") == MARK:
                    metadata.pop(_AMENDED, None)
                    return metadata
            if time.monotonic() > end:
                raise TimeoutError(f"{self._folder}/{METADATA}: not complete after {_PATIENCE} s")
            time.sleep(0.01)

    def _parts(self) -> Iterator[tuple[str, Entry]]:
        """What the other processes have measured; their notes of it go."""
        for item in self._items:
            for process in range(1, jax.process_count()):
                path = epath.Path(f"{self._folder}/{item}/{_PART.format(process)}")
                for name, entry in manifest.load(path.read_bytes()).items():
                    yield f"{item}/{name}", entry
                path.unlink()


def _measuring(step: StepManifest) -> Any:
    """A handler of Orbax's that saves as its own does, and has what this process has written measured."""
    own = ocp.handlers.PyTreeHandler

    class Measuring:
        def __init__(self):
            self._own = own()

        async def save(self, directory: Any, checkpointable: Any):
            writing = await self._own.save(directory, checkpointable)

            async def write() -> None:
                with processes.all_or_none():
                    await writing
                    step._add(os.fspath(directory.path))  # Orbax gives every item a thread and a loop of its own

            return write()

        async def load(self, *args: Any, **kwargs: Any):
            return await self._own.load(*args, **kwargs)

        async def metadata(self, *args: Any, **kwargs: Any):
            return await self._own.metadata(*args, **kwargs)

        def is_handleable(self, checkpointable: Any) -> bool:
            return self._own.is_handleable(checkpointable)

        def is_abstract_handleable(self, checkpointable: Any) -> bool | None:
            return self._own.is_abstract_handleable(checkpointable)

    # The checkpoint notes who wrote an item, and is read by that; what is written is Orbax's own.
    Measuring.__module__, Measuring.__qualname__ = own.__module__, own.__qualname__
    return Measuring


def extents(folder: str, base: str) -> dict[str, list[Extent]]:
    """Where the arrays of an OCDBT database lie in its files, by name relative to `folder`; {} where there is none.

    Nodes, which lead to arrays and hold the small ones, are "all of" the item.

    Args:
      folder: of the item, local.
      base: the database's folder in it, "" for the folder itself.
    """
    root = f"{folder}/{base}".rstrip("/")
    if not storage.is_file(f"{root}/manifest.ocdbt"):
        return {}
    item = os.path.basename(folder).removesuffix(atomicity.TMP_DIR_SUFFIX)  # noqa: PTH119
    index = f"all of {item}"
    if item in _SMALL:
        return _nodes(folder, base, index)
    store = ts.KvStore.open({"driver": "file", "path": f"{root}/"}).result()
    by_file: dict[str, list[Extent]] = {}

    def visit(location: str, prefix: bytes) -> None:
        add(location, index, own_checksum=True)
        for entry in ts.ocdbt.dump(store, location).result()["entries"]:
            if "location" in entry:
                visit(entry["location"], prefix + entry["subtree_common_prefix"])
            elif "indirect_value" in entry:
                add(entry["indirect_value"], _array((prefix + entry["key"]).decode()))

    def add(location: str, array: str, own_checksum: bool = False) -> None:
        _, place, name, start, length = location.split(":")
        if place:  # in another process's database, which that one has measured
            return
        known, offset, size = by_file.setdefault(f"{base}/{name}".lstrip("/"), []), int(start), int(length)
        if own_checksum:
            # A node ends with its own CRC-32C, and the CRC-32C of both is the same for all nodes.
            known += [(offset, size - _CRC, array), (offset + size - _CRC, _CRC, array)]
        else:
            known.append((offset, size, array))

    add(f"file::manifest.ocdbt:0:{storage.size(f'{root}/manifest.ocdbt')}", index, own_checksum=True)
    newest = ts.ocdbt.dump(store).result()["versions"][-1]["root"]
    if "location" in newest:
        visit(newest["location"], b"")
    return {name: sorted(known) for name, known in by_file.items()}


def _nodes(folder: str, base: str, index: str) -> dict[str, list[Extent]]:
    """`extents` of an item that is so small that its nodes hold everything."""
    by_file: dict[str, list[Extent]] = {}
    for name in (f"{base}/manifest.ocdbt", *(f"{base}/d/{name}" for name in storage.names(f"{folder}/{base}/d"))):
        size = storage.size(f"{folder}/{name}")
        by_file[name.lstrip("/")] = [(0, size - _CRC, index), (size - _CRC, _CRC, index)]
    return by_file


def _array(key: str) -> str:
    match = _OF_ARRAY.fullmatch(key)
    return match[1] if match else key


def array_of(name: str) -> str | None:
    """The array to which a file of a plain Zarr item belongs, from its name in a step or an import."""
    imported = name.startswith("params/state/")
    match = _OF_ARRAY.fullmatch(name.removeprefix("params/state/") if imported else name.partition("/")[2])
    return match[1] if match else None
