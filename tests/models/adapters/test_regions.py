"""Boxes: worked numbers, and a reference in numpy written from its formulas."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlvm_jax.models.adapters._pools import grid_pool
from vlvm_jax.models.adapters._regions import Boxes, region

ALPHAS = {0.2: (57, 5, 11), 0.3: (86, 7, 13), 0.4: (115, 8, 15), 0.5: (144, 8, 17), 0.6: (172, 9, 19),
          0.7: (201, 10, 20), 0.8: (230, 11, 21), 0.9: (259, 11, 23)}  # fmt: skip


def made(alpha, layout="released", pool="spatial_1d_max_pool", side=24):
    return region(grid_pool(pool, side, where="config.x"), alpha, layout)


def box(where, x, y):
    """[left, right) x [top, bottom) around a centre."""
    found = where.at(jnp.array([[x]]), jnp.array([[y]]))
    left, top = int(found.left[0, 0]), int(found.top[0, 0])
    return left, left + where.width, top, top + where.height


@pytest.mark.parametrize("alpha", ALPHAS)
def test_sizes(alpha):
    best, height, width = ALPHAS[alpha]
    released, corrected = made(alpha), made(alpha, "corrected")
    assert (released.rows, released.columns) == (12, 24) and (corrected.rows, corrected.columns) == (24, 12)
    assert (released.best, released.height, released.width) == (best, height, width)
    assert (corrected.best, corrected.height, corrected.width) == (best, width, height)
    assert released.num_tokens == corrected.num_tokens == height * width
    vertical = made(alpha, pool="vertical_1d_max_pool")  # whose true grid is the released view
    assert vertical == made(alpha, "corrected", "vertical_1d_max_pool") == released


def test_whole_frames_have_no_region():
    assert made(1.0) is None


@pytest.mark.parametrize(
    ("alpha", "layout", "centre", "expected"),
    [
        (0.6, "released", (0, 0), (0, 19, 0, 9)),
        (0.6, "released", (23, 11), (5, 24, 3, 12)),
        (0.6, "released", (12, 6), (3, 22, 2, 11)),
        (0.8, "released", (11, 5), (1, 22, 0, 11)),
        (0.8, "released", (12, 6), (2, 23, 1, 12)),
        (0.8, "corrected", (5, 11), (0, 11, 1, 22)),
    ],
)
def test_worked_boxes(alpha, layout, centre, expected):
    assert box(made(alpha, layout), *centre) == expected


@pytest.mark.parametrize(("alpha", "most"), [(0.5, (7, 4)), (0.6, (5, 3)), (0.8, (3, 1))])
def test_origin_ranges(alpha, most):
    found = made(alpha).at(jnp.arange(24)[None].repeat(12, 0), jnp.arange(12)[:, None].repeat(24, 1))
    assert (int(found.left.min()), int(found.left.max())) == (0, most[0])
    assert (int(found.top.min()), int(found.top.max())) == (0, most[1])


def test_all_cells_give_the_middle():
    for layout, centre in (("released", (11, 5)), ("corrected", (5, 11))):
        where = made(0.8, layout)
        everything = region(grid_pool("spatial_1d_max_pool", 24, where="config.x"), 0.999, layout)
        assert everything.best == 287
        left, _, top, _ = box(where, *centre)
        assert (int(where.centre(1, 1).left[0, 0]), int(where.centre(1, 1).top[0, 0])) == (left, top)


def test_released_crop_is_no_rectangle_of_the_image():
    """Alpha 0.8, left 1, top 0 drops true rows 22 and 23, column 0 of even rows and columns 10 and 11 of odd ones."""
    cells = jnp.arange(288.0).reshape(1, 1, 288, 1)
    where = made(0.8)
    kept = np.asarray(where.crop(cells, Boxes(jnp.array([[1]]), jnp.array([[0]])))).reshape(-1)
    rows, columns = np.divmod(kept.astype(int), 12)
    expected = {
        (row, column)
        for row in range(22)
        for column in range(12)
        if not (row % 2 == 0 and column == 0) and not (row % 2 == 1 and column in (10, 11))
    }
    assert set(zip(rows, columns, strict=True)) == expected and len(kept) == 231


def reference(scores, rows, columns, alpha):
    """Left and top from the formulas of the released code, for one frame."""
    count = max(1, int(rows * columns * alpha))
    top = sorted(range(len(scores)), key=lambda p: (-scores[p], p))[:count]
    height, width = max(1, round(rows * math.sqrt(alpha))), max(1, round(columns * math.sqrt(alpha)))
    cx = int(np.mean(np.float32([p % columns for p in top]), dtype=np.float32))
    cy = int(np.mean(np.float32([p // columns for p in top]), dtype=np.float32))
    left = min(max(cx - width // 2, 0), columns - width)
    return left, min(max(cy - height // 2, 0), rows - height), width, height


@given(
    side=st.integers(2, 12),
    alpha=st.floats(0.05, 0.95),
    layout=st.sampled_from(["released", "corrected"]),
    name=st.sampled_from(["spatial_1d_max_pool", "vertical_1d_max_pool", "concat", "spatial_2d_avg_pool"]),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=80, deadline=None)
def test_boxes_equal_the_reference(side, alpha, layout, name, seed):
    where = made(alpha, layout, name, side)
    scores = np.random.default_rng(seed).integers(0, 9, (1, 2, where.rows * where.columns)).astype(np.float32)  # ties
    found = where.around(jnp.asarray(scores))
    cells = where.crop(jnp.asarray(scores)[..., None], found)[..., 0]
    for slot in range(2):
        left, top, width, height = reference(scores[0, slot], where.rows, where.columns, alpha)
        assert (int(found.left[0, slot]), int(found.top[0, slot])) == (left, top)
        assert (where.width, where.height) == (width, height)
        assert 0 <= left <= where.columns - width and 0 <= top <= where.rows - height
        view = scores[0, slot].reshape(where.rows, where.columns)[top : top + height, left : left + width]
        np.testing.assert_array_equal(cells[0, slot], view.reshape(-1))
    inside = np.asarray(where.inside(found))
    np.testing.assert_array_equal(inside.sum(-1), where.num_tokens)
    np.testing.assert_array_equal(scores[inside > 0].reshape(1, 2, -1), cells)


def test_random_boxes_lie_anywhere_inside():
    where = made(0.5)
    found = where.random(jax.vmap(jax.random.key)(jnp.arange(64)), 8)
    assert {int(x) for x in np.unique(found.left)} == set(range(8))
    assert {int(x) for x in np.unique(found.top)} == set(range(5))
