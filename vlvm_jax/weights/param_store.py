"""Parameters on disk through Orbax, one at a time: for models larger than this host's memory.

Three files know Orbax: this one, for parameters alone, `training.checkpoint`, for the checkpoints of a running stage,
and `checksums`, for the manifests of both. The first two write the same thing, a flat dict of whole parameters, so that
what either wrote the other reads.
"""

import contextlib
import logging
import math
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath
from orbax.checkpoint import v1 as ocp
from orbax.checkpoint._src.path import atomicity
from orbax.checkpoint._src.serialization import tensorstore_utils

from vlvm_jax import manifest, storage
from vlvm_jax.errors import InputError
from vlvm_jax.models.params import Params
from vlvm_jax.weights.checksums import array_of

# Orbax logs every save at length, and errors that it raises. Other packages' lines, and ours, go through.
logging.getLogger("absl").addFilter(lambda record: "/orbax/" not in Path(record.pathname).as_posix())

# TensorStore tries a request 33 times over a quarter of an hour; no public name of Orbax says otherwise.
_RETRIES: Any = {"gcs_request_retries": {"max_retries": 6, "initial_delay": "500ms", "max_delay": "4s"}}
tensorstore_utils._BASE_TS_CONTEXT.update(_RETRIES)
tensorstore_utils._DEFAULT_OCDBT_TS_CONTEXT.update(_RETRIES)

COMMITTED = atomicity.COMMIT_SUCCESS_FILE  # comes last in a bucket
_TOGETHER = 64 << 20  # bytes; a save takes its time, whatever its size
_LOADED_TOGETHER = 512 << 20  # bytes; larger groups are faster, smaller ones report progress more often
_CHUNK = 8 << 20  # bytes; what is compressed, and read, as one piece: a file each


def _unraisable(raised: "sys.UnraisableHookArgs", before=sys.unraisablehook) -> None:
    """Orbax closes its loop when a request fails; of each that ends later TensorStore would tell by a traceback."""
    if str(raised.exc_value) != "Event loop is closed":
        before(raised)


sys.unraisablehook = _unraisable


@contextlib.contextmanager
def faults(directory: epath.PathLike) -> Iterator[None]:
    """Around what Orbax does in a folder: says in one line that storage fails, or refuses."""
    try:
        yield
    except Exception as error:
        if not storage.is_remote(os.fspath(directory)):
            raise
        link: BaseException | None = error
        while link is not None:
            if isinstance(link, storage.StorageError | InputError):
                raise link from None
            if match := re.search(r"retry attempts failed: ([^\[]+)", str(link)):
                raise storage.StorageError(f"{directory}: storage does not work ({match[1].strip()})") from None
            if match := re.search(r"(PERMISSION_DENIED|UNAUTHENTICATED): ([^\[]+)", str(link)):
                raise InputError(f"{directory}: no access ({match[2].strip()}); see docs/gcs.md") from None
            link = link.__cause__ or link.__context__
        raise


def save(directory: epath.Path, params: Iterable[tuple[str, np.ndarray]]) -> dict[str, manifest.Entry]:
    """Writes parameters as they come; `directory` appears when all of them are there. Returns what a manifest needs.

    Memory: one parameter, with up to `_TOGETHER` bytes of small ones. For a bucket, all of them on a local disk first.
    """
    if storage.is_remote(os.fspath(directory)):
        return _save_remote(directory, params)
    context = ocp.Context()
    context.array.saving.use_ocdbt = False  # it would hold a compressed copy of the parameter until all is written
    context.array.saving.storage_options.chunk_byte_size = _CHUNK
    context.memory.deepcopy_host_arrays = False  # nobody changes them meanwhile
    waiting: dict[str, np.ndarray] = {}
    size = 0
    with context, faults(directory):
        for path, value in params:
            waiting[path] = value
            size += value.nbytes
            del value  # or it would be held while the next one is made
            if size >= _TOGETHER:
                ocp.partial.save(directory, waiting)
                waiting, size = {}, 0
        if waiting:
            ocp.partial.save(directory, waiting)
        ocp.partial.finalize(directory)
    folder = os.fspath(directory)
    return manifest.measure(folder, storage.listing(folder), array_of=lambda name: array_of(f"params/{name}"))


def _save_remote(directory: epath.Path, params: Iterable[tuple[str, np.ndarray]]) -> dict[str, manifest.Entry]:
    """Orbax cannot write there a part at a time; the file that it takes for the end comes last."""
    with tempfile.TemporaryDirectory(prefix="vlvm_jax-params-") as folder:
        local = epath.Path(folder) / "params"
        entries = save(local, params)
        (local / COMMITTED).touch()
        entries.setdefault(COMMITTED, manifest.of_bytes(b""))
        storage.upload(Path(local), os.fspath(directory), last=COMMITTED)
    return entries


def shapes(directory: epath.Path, item: str | None = None) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and dtypes of what is saved, from the metadata alone.

    Args:
      item: the name under which a stage's checkpoint holds its parameters; None for what `save` wrote.
    """
    with faults(directory):
        metadata = ocp.metadata(directory) if item is None else ocp.checkpointables_metadata(directory)
    leaves = metadata.metadata if item is None else metadata.metadata[item]
    return {path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for path, leaf in leaves.items()}


def read(directory: epath.Path, path: str, item: str | None = None) -> np.ndarray:
    """One whole parameter on the host, as stored. Memory: the parameter, and what is read ahead of it."""
    return _load(directory, {path: np.ndarray}, item)[path]


def load(
    directory: epath.Path,
    abstract: Mapping[str, jax.ShapeDtypeStruct],
    item: str | None = None,
    tell: Callable[[int], None] = lambda read: None,
) -> Params:
    """The named parameters, in the dtypes and shardings asked for; each process reads only its shards.

    Args:
      tell: called after each group of parameters with the bytes that this process has read of it.
    """
    params: Params = {}
    group: dict[str, jax.ShapeDtypeStruct] = {}
    size = 0
    for number, (path, wanted) in enumerate(abstract.items(), start=1):
        group[path] = wanted
        # Of the whole parameter: each load ends in a barrier, so that all processes must make the same groups.
        size += math.prod(wanted.shape) * wanted.dtype.itemsize
        if size >= _LOADED_TOGETHER or number == len(abstract):
            params |= _load(directory, group, item)
            tell(sum(map(local_bytes, group.values())))
            group, size = {}, 0
    return params


def local_bytes(wanted: jax.ShapeDtypeStruct) -> int:
    """Bytes that this process reads of a parameter, each part counted once."""
    if wanted.sharding is None:
        return math.prod(wanted.shape) * wanted.dtype.itemsize
    everything = (slice(None),) * len(wanted.shape)
    parts = {
        tuple(part.indices(size)[:2] for part, size in zip(index or everything, wanted.shape, strict=True))
        for index in wanted.sharding.addressable_devices_indices_map(wanted.shape).values()
    }
    return sum(math.prod(stop - start for start, stop in part) for part in parts) * wanted.dtype.itemsize


def _load(directory: epath.Path, abstract: Mapping[str, Any], item: str | None) -> Any:
    context = ocp.Context()
    context.pytree.loading.partial_load = True
    with context, faults(directory):
        if item is None:
            return ocp.load(directory, dict(abstract))
        return ocp.load(directory, dict(abstract), checkpointable_name=item)
