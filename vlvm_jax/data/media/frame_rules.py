"""Which frames of a clip are taken: rules from numbers to numbers."""

import math
from collections.abc import Sequence

import numpy as np

from vlvm_jax.config import FrameRule, ShortVideo


def choose(
    total: int,
    clip_fps: float,
    count: int,
    *,
    rule: FrameRule,
    fps: float = 1.0,
    seed: Sequence[int] | None = None,
    short_video: ShortVideo = "formula",
) -> list[int]:
    """At most `count` of a clip's `total` frames, in time order, by a rule: `uniform_indices`, `fps_indices`,
    `segment_indices`, `segment_mid_indices`, `segment_start_indices`, `end_indices`; `video_chatgpt` is `segment_mid`
    with a frame that comes twice taken once.

    Args:
      short_video: of a clip of no more than `count` frames, what the rule's `formula` gives, or (`identity`) each frame
        once. Only of `segment_mid` are they different.
    """
    if short_video == "identity" and total <= count and rule != "fps":
        return list(range(total))
    if rule == "uniform":
        return uniform_indices(total, count)
    if rule == "segment_mid":
        return segment_mid_indices(total, count)
    if rule == "segment_start":
        return segment_start_indices(total, count)
    if rule == "ends":
        return end_indices(total, count)
    if rule == "video_chatgpt":
        return sorted(set(segment_mid_indices(total, count)))
    if rule == "fps":
        return fps_indices(total, clip_fps, fps, count)
    return segment_indices(total, count, seed)


def uniform_indices(total: int, count: int) -> list[int]:
    """Midpoints of `count` equal parts: floor((i + 0.5) * total / count). A clip shorter than `count` gives each
    frame once."""
    if total <= count:
        return list(range(total))
    return [int((i + 0.5) * total / count) for i in range(count)]


def fps_times(duration: float, rounding: float = 0.0, *, fps: float, cap: int) -> list[float]:
    """The slots of 1/fps seconds, in seconds: 0, 1/fps, 2/fps, ...; midpoints of `cap` equal parts if there are more.

    Args:
      duration: seconds.
      rounding: no slot starts within this many seconds of the end.
    """
    slots = max(1, math.ceil((duration - rounding) * fps - 1e-6))
    if slots > cap:
        return [(part + 0.5) * duration / cap for part in range(cap)]
    return [slot / fps for slot in range(slots)]


def fps_indices(total: int, clip_fps: float, fps: float, cap: int) -> list[int]:
    """The frames of a clip of constant rate that are on screen at `fps_times`; one may come several times."""
    if not total:
        return []
    times = fps_times(total / clip_fps, fps=fps, cap=cap)
    return [min(total - 1, int(time * clip_fps + 1e-6)) for time in times]


def segment_indices(total: int, count: int, seed: Sequence[int] | None) -> list[int]:
    """One frame of each of `count` equal parts: drawn with `seed`, the midpoint without one.

    Training gives the run's seed and the number of the record, so that a record has the same frames in each epoch and
    in a continued run; evaluation gives none.
    """
    if seed is None or total <= count:
        return uniform_indices(total, count)
    bounds = [i * total // count for i in range(count + 1)]
    return np.random.default_rng(list(seed)).integers(bounds[:-1], bounds[1:]).tolist()


def segment_mid_indices(total: int, count: int) -> list[int]:
    """Midpoints of T = min(total, count) parts of (total - 1) / T frames, their ends rounded half to even.

    Of Video-ChatGPT (mbzuai-oryx/Video-ChatGPT, `get_seq_frames` in scripts/save_spatio_temporal_clip_features.py),
    and from there FreeVA's, SlowFast-LLaVA's, Free Video-LLM's and T2Vid's. The last frame of a clip is hardly ever
    taken; of one as long as T a frame comes twice and the last never.
    """
    parts = min(total, count)
    edges = np.round((total - 1) / max(parts, 1) * np.arange(parts + 1)).astype(int)
    return ((edges[:-1] + edges[1:]) // 2).tolist()


def end_indices(total: int, count: int) -> list[int]:
    """Equal steps from the first frame to the last, rounded down; of a shorter clip some frames come twice.

    LLaVA-Video's rule (LLaVA-VL/LLaVA-NeXT, `load_video` with `force_sample`).
    """
    return np.linspace(0, total - 1, count, dtype=int).tolist() if total else []


def segment_start_indices(total: int, count: int) -> list[int]:
    """The first frames of `count` parts of floor(total / count) frames; the rest at the end is not looked at.

    IG-VLM's rule (imagegridworth/IG-VLM), which has none for a clip shorter than `count`: that gives each frame once.
    """
    step = max(1, total // count)
    return [step * part for part in range(min(total, count))]
