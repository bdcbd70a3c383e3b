"""Which frames are taken, as numbers."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlvm_jax.data.media.frame_rules import (
    choose,
    end_indices,
    fps_indices,
    fps_times,
    segment_indices,
    segment_mid_indices,
    segment_start_indices,
    uniform_indices,
)


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


@given(total=st.integers(0, 10_000), count=st.integers(1, 256))
def test_ends_are_llava_videos_frames(total, count):
    chosen = end_indices(total, count)
    assert chosen == choose(total, 25, count, rule="ends") == sorted(chosen)
    if total:
        assert len(chosen) == count and chosen[0] == 0
        assert count == 1 or chosen[-1] == total - 1


@pytest.mark.parametrize(
    ("total", "clip_fps", "fps", "cap", "expected"),
    [
        (24, 8, 1, 8, [0, 8, 16]),
        (25, 8, 1, 8, [0, 8, 16, 24]),
        (24, 8, 2, 8, [0, 4, 8, 12, 16, 20]),
        (10, 10, 4, 8, [0, 2, 5, 7]),
        (5, 30, 1, 8, [0]),
        (24, 8, 2, 4, [3, 9, 15, 21]),  # six wanted, four allowed: midpoints
        (4, 2, 8, 8, [0, 0, 1, 1, 2, 2, 3, 3]),  # more often than the clip has frames: 16 slots, 8 allowed
        (4, 2, 4, 8, [0, 0, 1, 1, 2, 2, 3, 3]),
        (3, 0.5, 1, 8, [0, 0, 1, 1, 2, 2]),
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
    assert all(a <= b for a, b in itertools.pairwise(chosen))
    assert chosen[0] >= 0 and chosen[-1] < total
    step = clip_fps / fps
    if step >= 1:
        assert len(set(chosen)) == len(chosen)  # each is on screen for no more than one slot
    if step >= 1 and total / step < cap - 1:
        assert chosen[0] == 0 and total - chosen[-1] <= step + 1
        assert all(abs(b - a - step) < 1 + 1e-6 for a, b in itertools.pairwise(chosen))


@pytest.mark.parametrize(
    ("duration", "fps", "cap", "expected"),
    [
        (5.1, 1, 8, [0, 1, 2, 3, 4, 5]),
        (5.0, 1, 8, [0, 1, 2, 3, 4]),
        (5.0009, 1, 8, [0, 1, 2, 3, 4]),  # a duration of 5 s that was rounded up
        (0.3, 1, 8, [0]),
        (5.0, 2, 4, [0.625, 1.875, 3.125, 4.375]),  # ten slots, four allowed
    ],
)
def test_slots(duration, fps, cap, expected):
    assert fps_times(duration, 1e-3, fps=fps, cap=cap) == expected


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


# --- rounded midpoints -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("total", "count", "expected"),
    [
        (11, 4, [1, 3, 6, 9]),  # edges 0, 2.5 -> 2, 5, 7.5 -> 8, 10: halves go to the even number
        (7, 4, [1, 2, 3, 5]),  # 0, 1.5 -> 2, 3, 4.5 -> 4, 6
        (4, 4, [0, 1, 2, 2]),  # 0, .75 -> 1, 1.5 -> 2, 2.25 -> 2, 3
        (1, 4, [0]),
        (0, 4, []),
        (3000, 2, [750, 2249]),
        # Free Video-LLM's, as its specification has them.
        (300, 4, [37, 112, 187, 261]),
        (100, 4, [12, 37, 62, 86]),
        (300, 8, [18, 56, 93, 131, 168, 205, 243, 280]),
        (100, 8, [6, 18, 31, 43, 56, 68, 80, 93]),
        (10, 50, [0, 1, 2, 3, 4, 4, 5, 6, 7, 8]),
        (51, 50, list(range(50))),
        (50, 50, [*range(25), *range(24, 49)]),  # 24 twice, 49 never
        # T2Vid's.
        (30, 24, [0, 1, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13, 15, 16, 17, 18, 20, 21, 22, 23, 24, 26, 27, 28]),
        (25, 24, list(range(24))),
        (24, 24, [*range(13), *range(12, 23)]),  # 12 twice, 23 never
        (
            60,
            24,
            [1, 3, 6, 8, 11, 13, 16, 18, 21, 23, 26, 28, 31, 33, 35, 38, 40, 43, 45, 48, 50, 53, 55, 58],
        ),
        (
            100,
            24,
            [2, 6, 10, 14, 18, 23, 27, 31, 35, 39, 43, 47, 52, 56, 60, 64, 68, 72, 76, 80, 84, 89, 93, 97],
        ),
    ],
)  # fmt: skip
def test_segment_mid_worked_numbers(total, count, expected):
    assert segment_mid_indices(total, count) == choose(total, 30.0, count, rule="segment_mid") == expected
    assert choose(total, 30.0, count, rule="video_chatgpt") == sorted(set(expected))


@pytest.mark.parametrize(
    ("total", "count", "first", "last"),
    [
        (1000, 50, [10, 30], [989]),
        (300, 50, [3, 9, 15], [284, 290, 296]),
        (100, 50, [1, 3], [98]),
        (64, 50, [0, 2, 3, 4, 5, 7, 8, 9, 10, 12], [61, 62]),
        (48, 24, [1, 3], [46]),
        (210, 24, [4, 13, 21, 30], [196, 204]),
        (300, 24, [6, 18, 31, 43], [280, 293]),
        (300, 64, [2, 7, 11, 16, 21, 25, 30], [292, 296]),
    ],
)
def test_segment_mid_at_both_ends(total, count, first, last):
    chosen = segment_mid_indices(total, count)
    assert len(chosen) == count
    assert chosen[: len(first)] == first and chosen[-len(last) :] == last


@pytest.mark.parametrize(
    ("total", "count", "middle"),
    [(300, 50, [141, 147, 152, 158]), (1000, 50, [490, 509, 529]), (100, 50, [47, 49, 50, 52]), (48, 24, [23, 24, 26])],
)
def test_segment_mid_in_the_middle(total, count, middle):
    chosen = segment_mid_indices(total, count)
    assert chosen[chosen.index(middle[0]) :][: len(middle)] == middle


@settings(deadline=None)
@given(total=st.integers(1, 100_000), count=st.integers(1, 128))
def test_segment_mid_is_its_formula_in_whole_numbers(total, count):
    chosen = segment_mid_indices(total, count)
    parts = min(total, count)
    edges = [round((total - 1) / parts * i) for i in range(parts + 1)]  # Python rounds half to even too
    assert chosen == [math.floor((a + b) / 2) for a, b in itertools.pairwise(edges)]
    assert chosen == sorted(chosen) and chosen[0] >= 0 and chosen[-1] < total
    if total > 2 * count:
        assert len(set(chosen)) == count


@pytest.mark.parametrize("rule", ["segment_mid", "segment_start", "video_chatgpt", "uniform", "segment"])
@pytest.mark.parametrize(("total", "count"), [(24, 24), (10, 24), (1, 1)])
def test_identity_takes_each_frame_of_a_short_clip_once(rule, total, count):
    chosen = choose(total, 10.0, count, rule=rule, short_video="identity", seed=(0, 1))
    assert chosen == list(range(total))


def test_identity_is_of_short_clips_and_not_of_a_rate():
    for rule in ("segment_mid", "segment_start", "uniform"):
        assert choose(25, 10.0, 24, rule=rule, short_video="identity") == choose(25, 10.0, 24, rule=rule)
    assert choose(20, 10.0, 24, rule="fps", short_video="identity") == [0, 10]


# --- first frames of parts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("total", "count", "expected"),
    [
        (60, 6, [0, 10, 20, 30, 40, 50]),
        (65, 6, [0, 10, 20, 30, 40, 50]),  # the five frames left at the end are not looked at
        (11, 6, [0, 1, 2, 3, 4, 5]),
        (6, 6, [0, 1, 2, 3, 4, 5]),
        (4, 6, [0, 1, 2, 3]),
        (0, 6, []),
    ],
)
def test_segment_start_worked_numbers(total, count, expected):
    assert segment_start_indices(total, count) == choose(total, 30.0, count, rule="segment_start") == expected
