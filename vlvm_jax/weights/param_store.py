"""Parameters on disk through Orbax, one at a time: for models larger than this host's memory.

Two files know Orbax: this one, for parameters alone, and `training.checkpoint`, for the checkpoints of a running stage.
Both write the same thing, a flat dict of whole parameters, so that what either wrote the other reads.
"""

import logging
from collections.abc import Iterable, Mapping

import jax
from etils import epath
from orbax.checkpoint import v1 as ocp

from vlvm_jax.models.params import Params

logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax logs every save at length


_TOGETHER = 64 << 20  # a save takes its time, whatever its size


def save(directory: epath.Path, params: Iterable[tuple[str, jax.Array]]) -> None:
    """Writes parameters as they come; `directory` appears when all of them are there.

    Memory: one parameter, with up to `_TOGETHER` bytes of small ones, and their copy while they are written.
    """
    waiting: Params = {}
    size = 0
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


def load(directory: epath.Path, abstract: Mapping[str, jax.ShapeDtypeStruct], item: str | None = None) -> Params:
    """The named parameters, in the dtypes and shardings asked for; each process reads only its shards."""
    context = ocp.Context()
    context.pytree.loading.partial_load = True
    with context:
        if item is None:
            return ocp.load(directory, dict(abstract))
        return ocp.load(directory, dict(abstract), checkpointable_name=item)
