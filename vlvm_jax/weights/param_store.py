"""Parameters on disk through Orbax, one at a time: for models larger than this host's memory.

Two files know Orbax: this one, for parameters alone, and `training.checkpoint`, for the checkpoints of a running stage.
Both write the same thing, a flat dict of whole parameters, so that what either wrote the other reads.
"""

import logging
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from orbax.checkpoint import v1 as ocp

from vlvm_jax.models.params import Params

logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax logs every save at length

_TOGETHER = 64 << 20  # bytes; a save takes its time, whatever its size
_CHUNK = 8 << 20  # bytes; what is compressed, and read, as one piece: a file each


def save(directory: epath.Path, params: Iterable[tuple[str, np.ndarray]]) -> None:
    """Writes parameters as they come; `directory` appears when all of them are there.

    Memory: one parameter, with up to `_TOGETHER` bytes of small ones.
    """
    context = ocp.Context()
    context.array.saving.use_ocdbt = False  # it would hold a compressed copy of the parameter until all is written
    context.array.saving.storage_options.chunk_byte_size = _CHUNK
    context.memory.deepcopy_host_arrays = False  # nobody changes them meanwhile
    waiting: dict[str, np.ndarray] = {}
    size = 0
    with context:
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


def shapes(directory: epath.Path, item: str | None = None) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and dtypes of what is saved, from the metadata alone.

    Args:
      item: the name under which a stage's checkpoint holds its parameters; None for what `save` wrote.
    """
    metadata = ocp.metadata(directory) if item is None else ocp.checkpointables_metadata(directory)
    found = metadata.metadata if item is None else metadata.metadata[item]
    return {path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for path, leaf in found.items()}


def read(directory: epath.Path, path: str, item: str | None = None) -> np.ndarray:
    """One whole parameter on the host, as stored. Memory: the parameter, and what is read ahead of it."""
    return _load(directory, {path: np.ndarray}, item)[path]


def load(directory: epath.Path, abstract: Mapping[str, jax.ShapeDtypeStruct], item: str | None = None) -> Params:
    """The named parameters, in the dtypes and shardings asked for; each process reads only its shards."""
    return _load(directory, abstract, item)


def _load(directory: epath.Path, abstract: Mapping[str, Any], item: str | None) -> Any:
    context = ocp.Context()
    context.pytree.loading.partial_load = True
    with context:
        if item is None:
            return ocp.load(directory, dict(abstract))
        return ocp.load(directory, dict(abstract), checkpointable_name=item)
