"""Released setting strings as adapter options."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlvm_jax.errors import InputError
from vlvm_jax.models.adapters._pools import POOLS
from vlvm_jax.recipes._released import CROPPED_POOLS, parse_setting

MAX = "spatial_1d_max_pool"


def path(num_frames, roi_alpha, pool=MAX):
    return {"num_frames": num_frames, "pool": pool, "roi_alpha": roi_alpha}


def test_the_released_default():
    """2648 tokens: 3 frames by the question and 5 uniform ones at 231 tokens, 50 at 16."""
    assert parse_setting(f"slow_3frms_{MAX}_roi8-middle_5frms_{MAX}_24x12-fast_50frms_4x4") == {
        "prompt_path": path(3, 0.8),
        "uniform_path": path(5, 0.8),
        "fast_path": {"num_frames": 50, "grid": [4, 4], "select": "prompt"},
    }


def test_slow_fast_is_the_uniform_path_and_all_frames():
    found = parse_setting(f"slowfast-slow_10frms_{MAX}-fast_4x4")
    assert found == {
        "prompt_path": path(0, 1.0),
        "uniform_path": path(10, 1.0),
        "fast_path": {"num_frames": 50, "grid": [4, 4], "select": "uniform"},
    }
    assert parse_setting(f"slowfast-slow_10frms_{MAX}-fast_2x4", 100)["fast_path"] == {
        "num_frames": 100, "grid": [2, 4], "select": "uniform",
    }  # fmt: skip


def test_roi10_is_no_crop_and_the_middle_size_has_no_effect():
    one = parse_setting(f"slow_3frms_{MAX}_roi10-middle_3frms_concat_24x12-fast_0frms_4x4")
    other = parse_setting(f"slow_3frms_{MAX}_roi10-middle_3frms_concat_1x1-fast_0frms_4x4")
    assert one == other
    assert one["prompt_path"] == path(3, 1.0) and one["uniform_path"] == path(3, 1.0, "concat")
    assert one["fast_path"]["num_frames"] == 0


@given(
    frames=st.tuples(*[st.integers(0, 200)] * 3),
    pools=st.tuples(*[st.sampled_from(CROPPED_POOLS)] * 2),
    alpha=st.integers(1, 10),
    grid=st.tuples(*[st.integers(1, 24)] * 2),
)
def test_every_number_comes_back(frames, pools, alpha, grid):
    found = parse_setting(
        f"slow_{frames[0]}frms_{pools[0]}_roi{alpha}-middle_{frames[1]}frms_{pools[1]}_24x12"
        f"-fast_{frames[2]}frms_{grid[0]}x{grid[1]}"
    )
    assert found["prompt_path"] == path(frames[0], alpha / 10, pools[0])
    assert found["uniform_path"] == path(frames[1], alpha / 10, pools[1])
    assert found["fast_path"] == {"num_frames": frames[2], "grid": list(grid), "select": "prompt"}


@pytest.mark.parametrize("pool", POOLS)
def test_every_pool_is_known(pool):
    assert parse_setting(f"slowfast-slow_10frms_{pool}-fast_4x4")["uniform_path"]["pool"] == pool


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "setting '': expected slow_<n>frms_"),
        (f"slow_3frms_{MAX}-fast_4x4", "expected slow_<n>frms_"),
        (f"slowfast-slow_10frms_{MAX}-fast_4x4 ", "expected slow_<n>frms_"),
        (f"slow_3frms_{MAX}_roi0-middle_5frms_{MAX}_24x12-fast_50frms_4x4", "roi0 is not between roi1 and roi10"),
        (f"slow_3frms_{MAX}_roi11-middle_5frms_{MAX}_24x12-fast_50frms_4x4", "roi11 is not between"),
        (
            f"slow_3frms_{MAX}_roi8-middle_5frms_concat_24x12-fast_50frms_4x4",
            "concat cannot be cropped; with roi below",
        ),
        ("slowfast-slow_10frms_max_pool-fast_4x4", "no pool 'max_pool'; there are concat, "),
        (f"slowfast-slow_10frms_{MAX}-fast_0x4", "a fast grid of 0x4 has no tokens"),
    ],
)
def test_what_is_no_setting(text, message):
    with pytest.raises(InputError, match=re.escape(message)):
        parse_setting(text)
