"""Setting strings of the code released for SlowFast-LLaVA and Free Video-LLM, as options of the adapters here.

    slow_3frms_spatial_1d_max_pool_roi8-middle_5frms_spatial_1d_max_pool_24x12-fast_50frms_4x4
    slowfast-slow_10frms_spatial_1d_max_pool-fast_4x4

In Free Video-LLM's, "slow" frames are picked by the question, "middle" ones uniformly; both paths are cropped alike,
and the size after "middle" has no effect. In SlowFast-LLaVA's, "slow" frames are uniform, and all frames go to "fast".
"""

import re
from typing import Any

from vlvm_jax.errors import InputError

CROPPED_POOLS = ("spatial_1d_max_pool", "spatial_1d_avg_pool", "vertical_1d_max_pool")  # 288 tokens of 576

_POOL = r"(?P<{}>[a-z0-9_]+?)"
_GUIDED = re.compile(
    rf"slow_(?P<prompt>\d+)frms_{_POOL.format('prompt_pool')}_roi(?P<roi>\d+)"
    rf"-middle_(?P<uniform>\d+)frms_{_POOL.format('uniform_pool')}_\d+x\d+"
    r"-fast_(?P<fast>\d+)frms_(?P<rows>\d+)x(?P<columns>\d+)"
)
_SLOW_FAST = re.compile(
    rf"slowfast-slow_(?P<uniform>\d+)frms_{_POOL.format('uniform_pool')}-fast_(?P<rows>\d+)x(?P<columns>\d+)"
)


def parse_setting(text: str, num_frames: int = 50) -> dict[str, dict[str, Any]]:
    """The paths of a released setting string.

    Args:
      num_frames: of a clip, all of which SlowFast-LLaVA's fast path takes.

    Returns:
      `prompt_path` and `uniform_path`, each with `num_frames` (0: none), `pool` and `roi_alpha` (1.0: no crop), and
      `fast_path` with `num_frames`, `grid` (rows, columns) and `select` (which frames, if not all).

    Raises:
      InputError: the string is of neither grammar, or says what neither code could do.
    """
    match = _GUIDED.fullmatch(text) or _SLOW_FAST.fullmatch(text)
    if match is None:
        raise InputError(
            f"setting {text!r}: expected slow_<n>frms_<pool>_roi<10 x alpha>-middle_<n>frms_<pool>_<H>x<W>-"
            "fast_<n>frms_<h>x<w> (Free Video-LLM) or slowfast-slow_<n>frms_<pool>-fast_<h>x<w> (SlowFast-LLaVA)"
        )
    part = match.groupdict()
    guided = match.re is _GUIDED
    alpha = int(part["roi"]) / 10 if guided else 1.0
    if not 0 < alpha <= 1:
        raise InputError(f"setting {text!r}: roi{part['roi']} is not between roi1 and roi10 (no crop)")
    prompt = {"num_frames": int(part.get("prompt", 0)), "pool": part.get("prompt_pool", part["uniform_pool"])}
    uniform = {"num_frames": int(part["uniform"]), "pool": part["uniform_pool"]}
    for path in (prompt, uniform):
        _check_pool(path["pool"], alpha, text)
    grid = [int(part["rows"]), int(part["columns"])]
    if not all(grid):
        raise InputError(f"setting {text!r}: a fast grid of {grid[0]}x{grid[1]} has no tokens; 0 frames leave it out")
    fast_frames = int(part["fast"]) if guided else num_frames
    return {
        "prompt_path": {**prompt, "roi_alpha": alpha},
        "uniform_path": {**uniform, "roi_alpha": alpha},
        "fast_path": {"num_frames": fast_frames, "grid": grid, "select": "prompt" if guided else "uniform"},
    }


def _check_pool(pool: str, alpha: float, text: str) -> None:
    from vlvm_jax.models.adapters._pools import POOLS

    if pool not in POOLS:
        raise InputError(f"setting {text!r}: no pool {pool!r}; there are {', '.join(POOLS)}")
    if alpha < 1 and pool not in CROPPED_POOLS:
        raise InputError(
            f"setting {text!r}: {pool} cannot be cropped; with roi below 10 use {', '.join(CROPPED_POOLS)}"
        )
