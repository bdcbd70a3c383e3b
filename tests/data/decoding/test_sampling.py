"""Which frames are taken, as numbers."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlvm_jax.data.decoding.sampling import choose, fps_indices, segment_indices, uniform_indices, video_chatgpt_indices


@pytest.mark.parametrize(
    ("total", "count", "expected"),
    [
        (16, 4, [2, 6, 10, 14]),
        (10, 4, [1, 3, 6, 8]),
        (17, 8, [1, 3, 5, 7, 9, 11, 13, 15]),
        (100, 1, [50]),
        (9, 8, [0, 1, 2, 3, 5, 6, 7, 8]),
        (8, 8, [0, 1, 2, 3, 4, 5, 6, 7]),
        (3, 8, [0, 1, 2]),
        (1, 1, [0]),
        (0, 4, []),
    ],
)
def test_uniform_worked_numbers(total, count, expected):
    assert uniform_indices(total, count) == expected


@settings(deadline=None)
@given(total=st.integers(0, 100_000), count=st.integers(1, 256))
def test_uniform_is_sorted_distinct_and_spread(total, count):
    chosen = uniform_indices(total, count)
    assert len(chosen) == min(total, count)
    assert all(a < b for a, b in itertools.pairwise(chosen))
    assert all(0 <= i < total for i in chosen)
    for part, index in enumerate(chosen):
        assert part * total <= index * len(chosen) + len(chosen) and index * len(chosen) <= (part + 1) * total
    # The first and last parts are treated alike, up to rounding down.
    if chosen:
        assert abs(chosen[0] - (total - 1 - chosen[-1])) <= 1


@pytest.mark.parametrize(
    ("total", "clip_fps", "fps", "cap", "expected"),
    [
        (24, 8, 1, 8, [0, 8, 16]),
        (25, 8, 1, 8, [0, 8, 16, 24]),
        (24, 8, 2, 8, [0, 4, 8, 12, 16, 20]),
        (10, 10, 4, 8, [0, 2, 5, 7]),
        (5, 30, 1, 8, [0]),
        (24, 8, 2, 4, [3, 9, 15, 21]),  # six wanted, four allowed: midpoints
        (4, 2, 8, 8, [0, 1, 2, 3]),  # more often than the clip has frames
        (64, 8, 1, 8, [0, 8, 16, 24, 32, 40, 48, 56]),  # exactly the cap
        (65, 8, 1, 8, uniform_indices(65, 8)),  # one too many
        (0, 8, 1, 8, []),
    ],
)
def test_fps_worked_numbers(total, clip_fps, fps, cap, expected):
    assert fps_indices(total, clip_fps, fps, cap) == expected


@settings(deadline=None)
@given(
    total=st.integers(1, 5000),
    clip_fps=st.floats(0.5, 120),
    fps=st.floats(0.1, 60),
    cap=st.integers(1, 128),
)
def test_fps_is_sorted_in_range_and_capped(total, clip_fps, fps, cap):
    chosen = fps_indices(total, clip_fps, fps, cap)
    assert 1 <= len(chosen) <= cap
    assert all(a < b for a, b in itertools.pairwise(chosen))
    assert chosen[0] >= 0 and chosen[-1] < total
    step = clip_fps / fps
    if step >= 1 and total / step < cap - 1:
        assert chosen[0] == 0 and total - chosen[-1] <= step + 1
        assert all(abs(b - a - step) < 1 + 1e-6 for a, b in itertools.pairwise(chosen))


@settings(deadline=None)
@given(
    total=st.integers(1, 100_000), count=st.integers(1, 256), seed=st.integers(0, 2**31), record=st.integers(0, 10**6)
)
def test_segments_give_one_frame_each_and_the_same_ones_again(total, count, seed, record):
    chosen = segment_indices(total, count, (seed, record))
    assert chosen == segment_indices(total, count, (seed, record)) and len(chosen) == min(total, count)
    if total > count:
        for part, index in enumerate(chosen):
            assert part * total // count <= index < (part + 1) * total // count


def test_segments_without_a_seed_are_midpoints():
    assert segment_indices(100, 8, None) == uniform_indices(100, 8)


def test_segments_draw_all_of_a_segment_and_differ_between_records():
    drawn = np.array([segment_indices(40, 4, (0, record)) for record in range(400)])
    for part in range(4):
        assert set(drawn[:, part]) == set(range(10 * part, 10 * part + 10))
    assert len({tuple(row) for row in drawn.tolist()}) > 370


def test_rules_by_name():
    assert choose(100, 10.0, 4, rule="uniform") == uniform_indices(100, 4)
    assert choose(100, 10.0, 4, rule="fps", fps=0.5) == fps_indices(100, 10.0, 0.5, 4) == uniform_indices(100, 4)
    assert choose(100, 10.0, 8, rule="fps", fps=0.5) == [0, 20, 40, 60, 80]
    assert choose(100, 10.0, 4, rule="segment", seed=(3, 5)) == segment_indices(100, 4, (3, 5))


# --- Video-ChatGPT's rule ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("total", "count", "expected"),
    [
        (11, 4, [1, 3, 6, 9]),  # edges 0, 2.5 -> 2, 5, 7.5 -> 8, 10: halves go to the even number
        (7, 4, [1, 2, 3, 5]),  # 0, 1.5 -> 2, 3, 4.5 -> 4, 6
        (4, 4, [0, 1, 2]),  # 0, .75 -> 1, 1.5 -> 2, 2.25 -> 2, 3: midpoints 0, 1, 2, 2
        (1, 4, [0]),
        (0, 4, []),
        (3000, 2, [750, 2249]),
    ],
)
def test_video_chatgpt_worked_numbers(total, count, expected):
    assert video_chatgpt_indices(total, count) == expected


@settings(deadline=None)
@given(total=st.integers(1, 100_000), count=st.integers(1, 128))
def test_video_chatgpt_takes_frames_there_are(total, count):
    chosen = video_chatgpt_indices(total, count)
    assert chosen == choose(total, 30.0, count, rule="video_chatgpt") == sorted(set(chosen))
    assert chosen[0] >= 0 and chosen[-1] < total
    if total > 2 * count:
        assert len(chosen) == count
