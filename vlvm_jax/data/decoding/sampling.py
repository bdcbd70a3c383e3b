"""Which frames of a clip are taken: rules from numbers to numbers."""

from collections.abc import Sequence
from typing import Literal

import numpy as np

FrameRule = Literal["uniform", "fps", "segment", "video_chatgpt"]


def choose(
    total: int, clip_fps: float, count: int, *, rule: FrameRule, fps: float = 1.0, seed: Sequence[int] | None = None
) -> list[int]:
    """At most `count` of a clip's `total` frames, by a rule: `uniform_indices`, `fps_indices`, `segment_indices`,
    `video_chatgpt_indices`."""
    if rule == "uniform":
        return uniform_indices(total, count)
    if rule == "video_chatgpt":
        return video_chatgpt_indices(total, count)
    if rule == "fps":
        return fps_indices(total, clip_fps, fps, count)
    return segment_indices(total, count, seed)


def uniform_indices(total: int, count: int) -> list[int]:
    """Midpoints of `count` equal parts: floor((i + 0.5) * total / count). A clip shorter than `count` gives each
    frame once."""
    if total <= count:
        return list(range(total))
    return [int((i + 0.5) * total / count) for i in range(count)]


def fps_indices(total: int, clip_fps: float, fps: float, cap: int) -> list[int]:
    """A frame every 1/fps seconds from the first on; when that gives more than `cap`, `cap` uniform midpoints."""
    step = clip_fps / fps
    wanted = max(1, int(np.ceil(total / step - 1e-9))) if total else 0
    if wanted > cap:
        return uniform_indices(total, cap)
    return sorted({min(total - 1, int(i * step)) for i in range(wanted)})


def segment_indices(total: int, count: int, seed: Sequence[int] | None) -> list[int]:
    """One frame of each of `count` equal parts: drawn with `seed`, the midpoint without one.

    Training gives the run's seed and the number of the record, so that a record has the same frames in each epoch and
    in a continued run; evaluation gives none.
    """
    if seed is None or total <= count:
        return uniform_indices(total, count)
    bounds = [i * total // count for i in range(count + 1)]
    return np.random.default_rng(list(seed)).integers(bounds[:-1], bounds[1:]).tolist()


def video_chatgpt_indices(total: int, count: int) -> list[int]:
    """Midpoints of parts of (total - 1) / T frames, T = min(total, count), their ends rounded half to even.

    Video-ChatGPT's rule (mbzuai-oryx/Video-ChatGPT, `get_seq_frames` in scripts/save_spatio_temporal_clip_features.py).
    The last frame is never taken of longer clips; of one as long as T, neighbours may coincide, and come once.
    """
    parts = min(total, count)
    edges = np.round((total - 1) / max(parts, 1) * np.arange(parts + 1)).astype(int)
    return sorted(set(((edges[:-1] + edges[1:]) // 2).tolist()))
