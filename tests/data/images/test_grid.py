"""A clip as one image: the grid's shape, where each frame lies, and the tokens that LLaVA-1.6's tiling makes of it."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vlvm_jax.data.images import anyres, grid

LLAVA_NEXT = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]  # height, width


def frame(value, height=4, width=6):
    return np.full((height, width, 3), value, np.uint8)


@pytest.mark.parametrize(
    ("count", "rows", "columns"),
    [(1, 1, 1), (2, 2, 1), (4, 2, 2), (5, 3, 2), (6, 3, 2), (8, 3, 3), (9, 3, 3), (12, 4, 3)],
)
def test_the_worked_shapes(count, rows, columns):
    assert grid.shape(count) == (rows, columns)


@given(count=st.integers(1, 400))
def test_every_frame_has_a_tile_and_no_row_is_empty(count):
    rows, columns = grid.shape(count)
    assert rows * columns >= count > (rows - 1) * columns
    assert abs(columns - math.sqrt(count)) <= 0.5


@pytest.mark.parametrize(
    ("width", "height", "canvas", "cells", "tokens"),
    [
        (640, 480, (672, 672), (48, 42), 2640),
        (320, 240, (672, 672), (48, 42), 2640),
        (480, 360, (672, 672), (48, 42), 2640),
        (1280, 720, (672, 672), (40, 48), 2536),
        (640, 360, (672, 672), (40, 48), 2536),
        (500, 281, (672, 672), (40, 48), 2536),
        (720, 1280, (1008, 336), (64, 24), 2176),
        (360, 640, (1008, 336), (64, 24), 2176),
        (250, 250, (672, 672), (48, 32), 2160),
        (500, 500, (672, 672), (48, 32), 2160),
        (176, 144, (672, 672), (48, 40), 2544),
        (160, 120, (672, 336), (28, 24), 1276),
    ],
)
def test_tokens_of_six_frames_are_those_of_the_specification(width, height, canvas, cells, tokens):
    size = grid.size(height, width, 6)
    assert size == grid.image([frame(0, height, width)] * 6, 6).size[::-1] == (3 * height, 2 * width)
    assert anyres.best_resolution(size, LLAVA_NEXT) == canvas
    covered = anyres.unpadded(size, (canvas[0] // 14, canvas[1] // 14))
    assert tuple(part.stop - part.start for part in covered) == cells
    assert len(anyres.tiled(size, LLAVA_NEXT, 336, 24)) == 576 + cells[0] * (cells[1] + 1) == tokens


def test_frames_lie_in_reading_order_and_missing_tiles_are_white():
    found = np.asarray(grid.image([frame(10 * i) for i in range(5)], 5))
    assert found.shape == (12, 12, 3)
    tiles = [found[4 * row : 4 * row + 4, 6 * column : 6 * column + 6] for row in range(3) for column in range(2)]
    assert [np.unique(tile).tolist() for tile in tiles] == [[0], [10], [20], [30], [40], [255]]


def test_a_clip_of_fewer_frames_keeps_the_grids_shape():
    found = np.asarray(grid.image([frame(0), frame(10)], 6))
    assert found.shape == (12, 12, 3)
    assert (found[4:] == 255).all() and not (found[:4] == 255).any()


def test_frames_of_several_sizes_become_the_smallest():
    rng = np.random.default_rng(0)
    sizes = [(40, 60), (20, 30), (30, 25)]  # 2400, 600 and 750 pixels
    frames = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]
    found = np.asarray(grid.image(frames, 3))
    assert found.shape == (40, 60, 3)
    scaled = [np.asarray(Image.fromarray(f).resize((30, 20), Image.Resampling.BICUBIC)) for f in frames]
    np.testing.assert_array_equal(found[:20, :30], scaled[0])
    np.testing.assert_array_equal(found[:20, 30:], frames[1])
    np.testing.assert_array_equal(found[20:, :30], scaled[2])
    assert (found[20:, 30:] == 255).all()
