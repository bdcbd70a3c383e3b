"""Tiles, unpadding, newlines and the shrink, against transformers' own packing of random features."""

import functools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from support.hf_checkpoints import PINPOINTS, WIDE_PINPOINTS, model_config, pil, processor
from transformers import LlavaNextModel, LlavaOnevisionModel
from transformers.image_processing_utils import select_best_resolution

from vlvm_jax.data.images import anyres

TILE, WIDTH = 32, 5
edges = st.integers(1, 400)
sizes = st.tuples(edges, edges) | edges.map(lambda edge: (edge, edge)) | st.tuples(edges, st.integers(1, 6))


@functools.cache
def model(family, side):
    """A model whose grid is side x side patches; nothing but its packing is used."""
    config = model_config(family, TILE // side * side, TILE // side)
    config.image_grid_pinpoints = pinpoints(family, side)
    return (LlavaNextModel if family == "llava_next" else LlavaOnevisionModel)(config)


def pinpoints(family, side):
    tile = TILE // side * side
    return [[h * tile // 32, w * tile // 32] for h, w in (PINPOINTS if family == "llava_next" else WIDE_PINPOINTS)]


def layout(family, size, side, max_tiles=4):
    tile = TILE // side * side
    if family == "llava_next":
        return anyres.tiled(size, pinpoints(family, side), tile, side)
    return anyres.tiled(size, pinpoints(family, side), tile, side, taps=4, max_tiles=max_tiles)


def gathered(found, features, newline):
    """What the device computes of a layout: features [frames, N, C] and the newline [C]."""
    slots = np.concatenate([features, np.broadcast_to(newline, (len(features), 1, WIDTH))], axis=1)
    return np.einsum("vp,vpc->vc", found.weight, slots.reshape(-1, WIDTH)[found.index])


def packed(family, size, side, features, newline, max_tiles):
    given = [torch.from_numpy(features)], torch.tensor([size])
    if family == "llava_next":
        tokens, _ = model(family, side).pack_image_features(*given, "default", torch.from_numpy(newline))
    else:
        ratio = f"anyres_max_{max_tiles}"
        tokens, _ = model(family, side).pack_image_features(*given, torch.from_numpy(newline), ratio)
    return tokens[0].numpy()


def draw(frames, side, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((frames, side**2, WIDTH), np.float32), rng.standard_normal(WIDTH, np.float32)


@pytest.mark.parametrize("side", [2, 3, 4, 5])
@pytest.mark.parametrize("family", ["llava_next", "llava_onevision"])
@settings(deadline=None, max_examples=40)
@given(size=sizes, max_tiles=st.sampled_from([1, 2, 4, 9]))
def test_tokens_are_those_of_transformers(family, side, size, max_tiles):
    tile = TILE // side * side
    features, newline = draw(anyres.num_tiles(size, pinpoints(family, side), tile), side)
    try:
        found = layout(family, size, side, max_tiles)
    except ValueError:
        with pytest.raises(RuntimeError, match="sizes should be greater than 0"):
            packed(family, size, side, features, newline, max_tiles)
        return
    expected = packed(family, size, side, features, newline, max_tiles)
    assert found.index.shape == found.weight.shape == (len(expected), 1 if family == "llava_next" else 4)
    assert (found.index.dtype, found.weight.dtype) == (np.int32, np.float32)
    np.testing.assert_allclose(gathered(found, features, newline), expected, atol=1e-5)


def test_the_shrink_is_exercised():
    """A canvas of 16 tiles for a limit of 1 must be interpolated, or the test above says nothing of it."""
    found = layout("llava_onevision", (400, 400), 4, max_tiles=1)
    assert ((found.weight > 0).sum(1) == 4).any() and len(found) < 16 * 16
    np.testing.assert_allclose(found.weight.sum(1), 1, atol=1e-6)


@pytest.mark.parametrize("family", ["llava_next", "llava_next_video", "llava_onevision"])
@settings(deadline=None, max_examples=60)
@given(size=sizes)
def test_counts_are_those_of_the_processors(family, size):
    hf = processor(family)
    options = {"taps": 4, "max_tiles": 4} if family == "llava_onevision" else {}
    found = anyres.tiled(size, hf.image_processor.image_grid_pinpoints, 32, 4, **options)
    expected = hf._get_number_of_features(*size, 32, 32)
    if hf.vision_feature_select_strategy == "default":  # the class token is counted in and taken out
        expected -= 1
    assert len(found) == expected


@settings(deadline=None, max_examples=200)
@given(size=sizes)
def test_best_resolution_is_that_of_transformers(size):
    for canvases in (PINPOINTS, WIDE_PINPOINTS, PINPOINTS[::-1]):
        assert anyres.best_resolution(size, canvases) == select_best_resolution(size, canvases)


def test_an_image_too_narrow_to_be_shrunk():
    with pytest.raises(ValueError, match=r"an image of 1 x 91 pixels is too narrow to be shrunk to 1 tiles"):
        layout("llava_onevision", (1, 91), 3, max_tiles=1)


def test_an_image_that_is_not_cut():
    """OneVision's second of two images: its patches and a newline, as `pack_image_features` has them."""
    features, newline = draw(1, 3)
    found = anyres.in_order(1, 9, 9, newline=True, taps=4)
    expected = packed("llava_onevision", (50, 70), 3, features, newline, 4)
    np.testing.assert_allclose(gathered(found, features, newline), expected, atol=1e-6)


def test_a_clip():
    """Pooled frames fill the first slots of each frame; the newline is taken once."""
    found = anyres.in_order(3, 2, 9, newline=True)
    assert found.index[:, 0].tolist() == [0, 1, 10, 11, 20, 21, 29]
    assert anyres.in_order(2, 9, 9).index[:, 0].tolist() == [*range(9), *range(10, 19)]


@pytest.mark.parametrize(("longest", "tile"), [(64, 32), (128, 32), (100, 32), (99, 33), (64, 64), (33, 33)])
@settings(deadline=None, max_examples=25)
@given(size=sizes)
def test_rows_and_columns_are_those_idefics_cuts(longest, tile, size):
    edges = {"size": {"longest_edge": longest}, "max_image_size": {"longest_edge": tile}}
    cut = pil("Idefics3")(**edges, return_row_col_info=True, do_pad=False)
    found = cut.preprocess([Image.new("RGB", size[::-1])], do_rescale=False, do_normalize=False)
    rows, columns = anyres.split_grid(size, longest, tile)
    assert (found["rows"], found["cols"]) == ([[rows]], [[columns]])
    assert len(found["pixel_values"][0]) == 1 + rows * columns


def test_images_beyond_4096_pixels_are_scaled_down_first():
    assert anyres.split_grid((3000, 6000), 6000, 1024) == (2, 4)
