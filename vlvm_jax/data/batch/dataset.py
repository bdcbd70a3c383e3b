"""Records to batches with Grain: load in worker processes, pack rows of fixed shape, batch. No jax in here.

Samples are decoded and tokenised in workers. They are packed and batched afterwards, in the main process, so that their
order does not depend on the number of workers and skipped samples are counted in one place.
"""

import functools
from collections.abc import Sequence
from typing import Literal

import grain
import numpy as np

from vlvm_jax.data.batch import packing, tuning
from vlvm_jax.data.batch.loading import loaded
from vlvm_jax.data.batch.skipped import SkipLog
from vlvm_jax.data.batch.stream import WHOLE, Part, PartOf
from vlvm_jax.data.batch.tuning import Loading
from vlvm_jax.data.record import Record
from vlvm_jax.data.sample.loader import SampleLoader
from vlvm_jax.data.sample.spec import SampleSpec, check_guided


def make_dataset(
    records: Sequence[Record],
    spec: SampleSpec,
    *,
    rows: int,
    pack: bool,
    skip_log: SkipLog,
    seed: int | None,
    workers: int | Literal["auto"] | Loading,
    part: Part = WHOLE,
) -> grain.IterDataset:
    """Batches of `rows` rows, as dicts with the fields of `models.batch.Batch`, `record` and `last`.

    `visual_index` and `visual_weight` are among them where the spec's processor cuts images so that they are needed.
    `last` int64 [rows] numbers the last sample of each row among those of the reader, the skipped ones counted.

    With a seed: shuffled anew every epoch, for ever. Without: once, in order, the last batch filled up with empty rows.
    The batches are the same whatever the workers. With the spec's `prompt_tokenizer`, which needs rows of one sample,
    `prompt_ids` int32 [rows, P] are among them.

    Args:
      workers: processes that load samples; see `plan_loading`.
      part: of the samples in this order; all by default.

    Raises:
      InputError: packed rows of samples that are guided by their question.
    """
    check_guided(spec.data.prompt_tokenizer, pack, "config")
    loading = workers if isinstance(workers, Loading) else plan_loading(records, spec, rows, pack, workers)
    order = grain.MapDataset.range(len(records))
    if seed is not None:
        order = order.seed(seed).shuffle().repeat()
    loader = SampleLoader(records, spec)
    chosen = PartOf(order, part)
    samples = grain.MapDataset.source(chosen).map(loader)
    arrived = loaded(samples, loading, rows, lambda number: loader.named(chosen[number]))
    numbered = arrived.map_with_index(functools.partial(packing.numbered, part.taken))
    usable = numbered.filter(skip_log.usable)
    batches = _batched(usable, loader, rows, pack, drop_remainder=seed is not None)
    # Packing the next batches overlaps with the step on this one.
    return grain.experimental.ThreadPrefetchIterDataset(batches, prefetch_buffer_size=loading.batches)


def plan_loading(
    records: Sequence[Record], spec: SampleSpec, rows: int, pack: bool, workers: int | Literal["auto"]
) -> Loading:
    """How samples are loaded by that many workers, or by as many as a short measurement suggests."""
    loader = SampleLoader(records, spec)
    _, taps = loader.layout
    return tuning.plan(
        tuning.measure(loader, len(records), spec.length, spec.frames) if workers == "auto" else workers,
        sample_bytes=3 * spec.frames * spec.image_size**2 + (10 + 8 * taps) * spec.length,
        rows=rows,
        pack=pack,
        cache_bytes=spec.cache_bytes,
    )


def empty_batch(spec: SampleSpec, rows: int) -> dict[str, np.ndarray]:
    """A batch as `make_dataset` gives them, without a sample in it."""
    loader = SampleLoader([], spec)
    nothing = grain.MapDataset.source([packing.numbered(0, 0, loader.empty())]).to_iter_dataset()
    return next(iter(_batched(nothing, loader, rows, pack=spec.data.prompt_tokenizer is None)))


def _batched(
    samples: grain.IterDataset, loader: SampleLoader, rows: int, pack: bool, *, drop_remainder: bool = False
) -> grain.IterDataset:
    spec = loader.spec
    return packing.batched(
        samples,
        length=spec.length,
        frames=spec.frames,
        rows=rows,
        pack=pack,
        layout=loader.layout,
        prompt_length=spec.data.prompt_length if spec.data.prompt_tokenizer is not None else 0,
        drop_remainder=drop_remainder,
    )
