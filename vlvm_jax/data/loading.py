"""Samples as they are loaded, in order: by threads of this process, or by worker processes."""

import pickle
from typing import Any

import grain
import numpy as np
from absl import flags

from vlvm_jax.data import tuning
from vlvm_jax.data.tuning import Loading
from vlvm_jax.data.workers import follow_parent


def loaded(samples: grain.MapDataset, loading: Loading, rows: int) -> grain.IterDataset:
    """The samples, whatever they are, as many ahead as `loading` says.

    Args:
      rows: of a batch; no more than two batches wait to be read by threads.
    """
    waiting = min(loading.samples, 2 * rows)
    if not loading.workers:
        return samples.to_iter_dataset(_read(loading.threads, waiting))
    if not flags.FLAGS.is_parsed():  # Grain reads flags; outside a command nobody has parsed any
        flags.FLAGS.mark_as_parsed()
    # Each array that crosses takes a block of shared memory, which for small samples costs more than they do: so some
    # cross as one. (Grain cannot count the batches of one of an endless dataset.)
    together = loading.together
    groups = samples.batch(together, batch_fn=list) if together > 1 else samples.map(_alone)
    read = _read(0 if loading.threads == 1 else loading.threads, waiting // together)
    options = grain.MultiprocessingOptions(
        num_workers=loading.workers, per_worker_buffer_size=max(1, loading.samples // together)
    )
    received = groups.map(_to_bytes).to_iter_dataset(read).mp_prefetch(options, worker_init_fn=_start_worker)
    return grain.experimental.FlatMapIterDataset(_StartTogether(received), _FromBytes())


def _read(threads: int, waiting: int) -> grain.ReadOptions:
    return grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(1, threads, waiting))


class _StartTogether(grain.IterDataset):
    """Starts all workers at the first sample.

    Once its state has been asked for, which is how `FlatMapIterDataset` begins, an iterator over workers starts each
    only as the one before has given its first element.
    """

    def __iter__(self) -> grain.DatasetIterator:
        return _Started(iter(self._parent))


class _Started(grain.DatasetIterator):
    def __next__(self) -> Any:
        self._parent.start_prefetch()
        return next(self._parent)

    def get_state(self) -> dict[str, Any]:
        return self._parent.get_state()

    def set_state(self, state: dict[str, Any]) -> None:
        self._parent.set_state(state)


def _start_worker(_worker: int, _workers: int) -> None:
    follow_parent()


def _alone(sample: Any) -> list[Any]:
    return [sample]


def _to_bytes(samples: list[Any]) -> np.ndarray:
    return np.frombuffer(pickle.dumps(samples, pickle.HIGHEST_PROTOCOL), np.uint8)


class _FromBytes(grain.experimental.FlatMapTransform):
    max_fan_out = tuning.MAX_TOGETHER

    def flat_map(self, block: np.ndarray) -> list[Any]:
        return pickle.loads(block.data)
