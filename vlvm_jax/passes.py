"""One pass over records on all processes: every record once, in order, as batches on the devices."""

import functools
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Literal

import jax
import numpy as np
from jax.sharding import Mesh

from vlvm_jax.data.batch.dataset import empty_batch, make_dataset
from vlvm_jax.data.batch.skipped import SkipLog
from vlvm_jax.data.batch.stream import Part
from vlvm_jax.data.record import Record
from vlvm_jax.data.sample.spec import SampleSpec
from vlvm_jax.models.batch import Batch, rows_to_device, to_device
from vlvm_jax.parallel import processes


def batches(
    records: Sequence[Record],
    spec: SampleSpec,
    mesh: Mesh,
    *,
    rows: int,
    pack: bool,
    workers: int | Literal["auto"],
) -> Generator[tuple[Batch, jax.Array]]:
    """Batches, and which of the records each of their tokens is of, [B, L]; within `jax.set_mesh`.

    Records that cannot be read are left out. All processes get equally many batches.

    Args:
      rows: of a batch of all processes.
    """
    share, shares = processes.batch_share(mesh)
    dataset = make_dataset(
        records,
        spec,
        rows=rows // shares,
        pack=pack,
        skip_log=SkipLog(records, 1.0),
        seed=None,
        workers=workers,
        part=Part(reader=share, readers=shares),
    )
    iterator = iter(dataset)
    try:
        for batch in _together(iterator, functools.partial(empty_batch, spec, rows // shares)):
            yield to_device(batch, mesh), rows_to_device(batch["record"], mesh)
    finally:
        iterator.close()


def _together(
    batches: Iterator[Mapping[str, np.ndarray]], empty: Callable[[], Mapping[str, np.ndarray]]
) -> Iterator[Mapping[str, np.ndarray]]:
    """This process's batches, and empty ones after its last until all processes have had theirs."""
    while True:
        batch = next(batches, None)
        if not processes.any_of_them(batch is not None):
            return
        yield empty() if batch is None else batch
