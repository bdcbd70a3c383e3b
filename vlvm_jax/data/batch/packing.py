"""Samples to rows of fixed shape and rows to batches, with Grain's first-fit packing."""

import functools
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import grain
import numpy as np

from vlvm_jax.data.sample.assemble import Sample

_TOKEN_FEATURES = ("token_ids", "media_mask", "loss_mask", "record")
_LAYOUT_FEATURES = ("visual_index", "visual_weight")
_FRAME_FEATURES = ("frames", "media", "is_video")
_NOTES = ("bad", "prompt_cut")  # for whoever counts samples, not for the model
_ENOUGH_BATCHES = 32


def numbered(first: int, number: int, sample: Sample) -> Sample:
    """A sample with its number among those of its reader, of which it is the `number`-th after `first`."""
    return {**sample, "number": np.array(first + number, np.int64)}


def batched(
    samples: grain.IterDataset,
    *,
    length: int,
    frames: int,
    rows: int,
    pack: bool,
    layout: tuple[int, int] = (0, 0),
    prompt_length: int = 0,
    drop_remainder: bool = False,
) -> grain.IterDataset:
    """Packs numbered samples, in order: every batch holds the next ones that its rows have room for.

    Args:
      length, frames: of a row.
      layout: S and P of `visual_index`; zeros where there is none.
      prompt_length: of `prompt_ids`, which rows of one sample may have; 0 where there are none.
    """
    slots, taps = layout
    token_features = (*_TOKEN_FEATURES, *(_LAYOUT_FEATURES if taps else ()))
    prompt = {"prompt_ids": prompt_length} if prompt_length else {}
    packed = grain.experimental.FirstFitPackIterDataset(
        samples.map(_drop_note),
        length_struct=dict.fromkeys(token_features, length) | dict.fromkeys(_FRAME_FEATURES, frames) | prompt,
        num_packing_bins=rows,
        shuffle_bins=False,
        max_sequences_per_bin=None if pack else 1,
        meta_features=[
            key for key in (*token_features, *_FRAME_FEATURES, *prompt, "number") if key not in ("token_ids", "frames")
        ],
    )
    finish = functools.partial(_finish_row, slots=slots)
    return packed.map(finish).batch(rows, drop_remainder=drop_remainder, batch_fn=_pad_batch(rows))


def samples_per_batch(sizes: Sequence[tuple[int, int]], *, length: int, frames: int, rows: int) -> float:
    """How many samples of such (tokens, frames) `batched` packs into a batch, on average; each fits a row by itself.

    The sizes come again and again, each time in another order, until there are enough batches for an average.
    """
    order = np.random.default_rng(0)
    endless = (sizes[i] for _ in itertools.count() for i in order.permutation(len(sizes)))
    full = filled(endless, length=length, frames=frames, rows=rows)
    return float(np.mean(list(itertools.islice(full, _ENOUGH_BATCHES))))


def filled(sizes: Iterable[tuple[int, int]], *, length: int, frames: int, rows: int) -> Iterator[int]:
    """How many samples of such (tokens, frames) `batched` packs into each batch that becomes full, in this order.

    First fit: a batch is full when the next sample fits none of its rows.
    """
    taken, free = 0, [(length, frames)] * rows
    for tokens, shown in sizes:
        place = next((i for i, (left, room) in enumerate(free) if tokens <= left and shown <= room), None)
        if place is None:
            yield taken
            taken, free, place = 0, [(length, frames)] * rows, 0
        free[place] = (free[place][0] - tokens, free[place][1] - shown)
        taken += 1


def _drop_note(sample: Sample) -> Sample:
    return {key: value for key, value in sample.items() if key not in _NOTES}


def _finish_row(row: dict[str, np.ndarray], slots: int = 0) -> dict[str, np.ndarray]:
    """Grain's packed features to ours: one id per medium along the row, and slots counted from the row's first frame.

    Args:
      slots: S, of a frame.
    """
    segment, local = row["frames_segment_ids"], row["media"]
    change = np.concatenate([[True], (segment[1:] != segment[:-1]) | (local[1:] != local[:-1])])
    finished = {
        "frames": row["frames"],
        "media": np.where(segment > 0, np.cumsum(change), 0).astype(np.int32),
        "is_video": row["is_video"],
        "token_ids": row["token_ids"],
        "media_mask": row["media_mask"],
        "positions": row["token_ids_positions"],
        "segment_ids": row["token_ids_segment_ids"],
        "loss_mask": row["loss_mask"],
        "record": row["record"],
        "last": row["number"][-1],
    }
    if "prompt_ids" in row:
        finished["prompt_ids"] = row["prompt_ids"]
    if "visual_index" in row:
        segments, first = np.unique(segment, return_index=True)
        start = np.zeros(max(segment.max(), finished["segment_ids"].max()) + 1, np.int32)
        start[segments] = first * slots
        moved = row["visual_index"] + start[finished["segment_ids"]][:, None]
        finished["visual_index"] = np.where(row["media_mask"][:, None], moved, 0).astype(np.int32)
        finished["visual_weight"] = row["visual_weight"]
    return finished


def _pad_batch(rows: int):
    def batch(items: Sequence[dict[str, Any]]) -> dict[str, np.ndarray]:
        empty = {key: np.zeros_like(value) for key, value in items[0].items()}
        items = [*items, *[empty] * (rows - len(items))]
        return {key: np.stack([item[key] for item in items]) for key in empty}

    return batch
