"""The arrays of one sample."""

import numpy as np

from vlvm_jax.data.images.anyres import Layout
from vlvm_jax.data.prompt.conversation import Expansion, Tokens
from vlvm_jax.data.sample.assemble import Medium, assemble


def test_media_come_in_the_order_of_the_text():
    """A clip of two frames and an image, which the text shows first. Frames have 4 slots; the last one is read."""
    layouts = [Layout(np.full((2, 1), place, np.int32), np.full((2, 1), place, np.float32)) for place in (7, 3)]
    clip = Medium("video", np.full((2, 2, 2, 3), 1, np.uint8), Expansion((2,)), layouts[0])
    image = Medium("image", np.full((1, 2, 2, 3), 2, np.uint8), Expansion((2,)), layouts[1])
    mask = np.array([True, True, False, True, True])
    tokens = Tokens(np.arange(5, dtype=np.int32), mask, ~mask, order=(1, 0))
    sample = assemble(tokens, [clip, image], 2, slots=4, taps=1)
    assert sample["frames"][:, 0, 0, 0].tolist() == [2, 1, 1]
    assert sample["media"].tolist() == [1, 2, 2] and sample["is_video"].tolist() == [False, True, True]
    assert sample["visual_index"][:, 0].tolist() == [3, 3, 0, 4 + 7, 4 + 7]
    assert sample["visual_weight"][:, 0].tolist() == [3, 3, 0, 7, 7]
