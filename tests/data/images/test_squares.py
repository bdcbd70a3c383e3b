"""Pictures to squares: cropped, squashed or padded."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from vlvm_jax.data.images.squares import padded, to_square
from vlvm_jax.data.media import frames

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)


def picture(width, height, seed=0):
    rng = np.random.default_rng([width, height, seed])
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("edges", [(64, 48), (48, 64), (33, 100), (24, 24)])
@pytest.mark.parametrize("fit", ["auto", "crop"])
def test_crop_is_clips_rule(edges, fit):
    np.testing.assert_array_equal(to_square(picture(*edges), 24, fit, CLIP_MEAN), frames.resize(picture(*edges), 24))


@pytest.mark.parametrize("edges", [(64, 48), (48, 64), (33, 100), (24, 24)])
def test_squash_is_a_plain_bicubic_resize(edges):
    expected = np.asarray(picture(*edges).resize((24, 24)))  # Pillow's default for pictures is bicubic
    np.testing.assert_array_equal(to_square(picture(*edges), 24, "squash", CLIP_MEAN), expected)
    np.testing.assert_array_equal(to_square(np.asarray(picture(*edges)), 24, "squash", CLIP_MEAN), expected)


@pytest.mark.parametrize("edges", [(64, 48), (48, 64), (33, 100), (100, 33), (24, 24)])
def test_pad_is_llavas(edges):
    """transformers' own padding and resizing of LLaVA-1.5's processor."""
    theirs = LlavaImageProcessorPil(
        do_pad=True, size={"shortest_edge": 24}, crop_size={"height": 24, "width": 24}, image_mean=CLIP_MEAN,
        do_rescale=False, do_normalize=False,
    )  # fmt: skip
    expected = np.asarray(theirs.preprocess([picture(*edges)])["pixel_values"][0]).transpose(1, 2, 0)
    found = to_square(picture(*edges), 24, "pad", CLIP_MEAN)
    assert np.abs(found.astype(int) - expected).max() <= 1


def test_the_colour_of_the_padding():
    square = np.asarray(padded(picture(10, 4), CLIP_MEAN))
    assert square.shape == (10, 10, 3)
    assert np.unique(square[:3].reshape(-1, 3), axis=0).tolist() == [[122, 116, 104]]
    assert np.unique(square[7:].reshape(-1, 3), axis=0).tolist() == [[122, 116, 104]]
    np.testing.assert_array_equal(square[3:7], np.asarray(picture(10, 4)))


@settings(deadline=None, max_examples=50)
@given(width=st.integers(1, 90), height=st.integers(1, 90), size=st.integers(1, 40))
def test_any_picture_becomes_a_square(width, height, size):
    for fit in ("crop", "squash", "pad"):
        found = to_square(picture(width, height), size, fit, CLIP_MEAN)
        assert found.shape == (size, size, 3) and found.dtype == np.uint8


def test_only_squashed_and_padded_ones_show_the_edges():
    wide = np.zeros((20, 60, 3), np.uint8)
    wide[:, :10], wide[:, -10:] = 255, 255
    assert not to_square(wide, 24, "crop", CLIP_MEAN).any()
    assert (to_square(wide, 24, "squash", CLIP_MEAN)[:, 0] > 200).all()
    assert (to_square(wide, 24, "pad", CLIP_MEAN)[12, [0, -1]] > 200).all()
