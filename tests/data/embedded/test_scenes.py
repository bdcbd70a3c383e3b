"""What is drawn: shapes that an observer of pixels tells apart, on a texture that is darker than all of them."""

import numpy as np
import pytest

from vlvm_jax.data.embedded import scenes

SIZE = 96


def named_shape(mask):
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    box = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    if box.mean() > 0.9:
        return "square"
    if box.mean() > 0.68:
        return "circle"
    low = np.argwhere(box).mean(axis=0)[0] / len(box)
    return "triangle" if low > 0.58 else "cross"


@pytest.mark.parametrize("color", scenes.COLORS)
@pytest.mark.parametrize("shape", scenes.SHAPES)
@pytest.mark.parametrize("radius", [0.085, 0.15])
def test_a_shape_is_what_it_is_called(shape, color, radius):
    frame = scenes.textured(np.random.default_rng(4), SIZE)
    scenes.paint(frame, shape, scenes.COLORS[color], 40.3, 51.8, radius * SIZE)
    near = np.abs(frame - scenes.COLORS[color]).max(axis=-1) < 60
    assert named_shape(near) == shape
    assert np.abs(np.argwhere(near).mean(axis=0) - (40.3, 51.8)).max() < 0.3 * radius * SIZE


def test_textures_are_reproducible_and_dark():
    for seed in range(20):
        one, again = (scenes.textured(np.random.default_rng(seed), SIZE) for _ in range(2))
        np.testing.assert_array_equal(one, again)
        assert all(np.abs(one - color).max(axis=-1).min() > 60 for color in scenes.COLORS.values())
