"""How many samples a packed batch holds: the count against Grain's own packing."""

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


def test_samples_of_one_size():
    assert packing.samples_per_batch([(4, 1)], length=LENGTH, frames=FRAMES, rows=2) == 6
    assert packing.samples_per_batch([(1, 2)], length=LENGTH, frames=FRAMES, rows=2) == 4
    assert packing.samples_per_batch([(LENGTH, FRAMES)], length=LENGTH, frames=FRAMES, rows=7) == 7
