"""Packed rows: what is in them, and how many samples a batch holds, counted as Grain packs them."""

import grain
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlvm_jax.data.batch import packing

LENGTH, FRAMES = 12, 5


def sample(tokens, frames):
    return {
        "token_ids": np.ones(tokens, np.int32),
        "media_mask": np.zeros(tokens, bool),
        "loss_mask": np.zeros(tokens, bool),
        "record": np.zeros(tokens, np.int32),
        "frames": np.zeros((frames, 2, 2, 3), np.uint8),
        "media": np.arange(1, frames + 1, dtype=np.int32),
        "is_video": np.zeros(frames, bool),
        "bad": np.zeros(0, np.uint8),
    }


def packed(sizes, rows):
    """Samples in each batch, as Grain packs them."""
    numbered = [packing.numbered(0, number, sample(*size)) for number, size in enumerate(sizes)]
    source = grain.MapDataset.source(numbered).to_iter_dataset()
    batches = packing.batched(source, length=LENGTH, frames=FRAMES, rows=rows, pack=True)
    return [int(np.max(batch["segment_ids"], axis=1).sum()) for batch in batches]


@pytest.mark.parametrize("rows", [1, 3])
@given(sizes=st.lists(st.tuples(st.integers(1, LENGTH), st.integers(0, FRAMES)), min_size=1, max_size=100))
@settings(max_examples=30, deadline=None)
def test_batches_are_filled_as_grain_packs_them(sizes, rows):
    got = packed(sizes, rows)
    assert got[:-1] == list(packing.filled(sizes, length=LENGTH, frames=FRAMES, rows=rows))
    assert sum(got) == len(sizes)


def row_of(*samples, slots=0):
    """The one row that holds these samples."""
    numbered = [packing.numbered(5, number, one) for number, one in enumerate(samples)]
    source = grain.MapDataset.source(numbered).to_iter_dataset()
    layout = (slots, 1) if slots else (0, 0)
    (batch,) = packing.batched(source, length=LENGTH, frames=FRAMES, rows=1, pack=True, layout=layout)
    return {name: value[0].tolist() for name, value in batch.items()}


def test_each_packed_sample_begins_anew():
    """The first shows two media, one of them a clip of two frames; the second and the third show one each."""
    three = {**sample(5, 3), "media": np.array([1, 1, 2], np.int32)}
    row = row_of(three, sample(4, 1), sample(2, 1))
    assert row["positions"] == [0, 1, 2, 3, 4, 0, 1, 2, 3, 0, 1, 0]
    assert row["segment_ids"] == [1] * 5 + [2] * 4 + [3] * 2 + [0]
    assert row["media"] == [1, 1, 2, 3, 4]
    assert row["last"] == 7  # numbered from 5


def test_slots_count_from_the_first_frame_of_the_row():
    """Frames of 10 slots; each sample reads the last slot of its last frame."""
    one, two = sample(3, 2), sample(2, 1)
    for each, last in ((one, 19), (two, 9)):
        each["media_mask"][-1] = True
        each["visual_index"] = np.full((len(each["token_ids"]), 1), last, np.int32)
        each["visual_weight"] = np.ones((len(each["token_ids"]), 1), np.float32)
    assert row_of(one, two, slots=10)["visual_index"] == [[0], [0], [19], [0], [29]] + [[0]] * 7


def test_samples_of_one_size():
    assert packing.samples_per_batch([(4, 1)], length=LENGTH, frames=FRAMES, rows=2) == 6
    assert packing.samples_per_batch([(1, 2)], length=LENGTH, frames=FRAMES, rows=2) == 4
    assert packing.samples_per_batch([(LENGTH, FRAMES)], length=LENGTH, frames=FRAMES, rows=7) == 7
