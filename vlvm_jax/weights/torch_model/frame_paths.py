"""What the adapters share that build a clip's tokens from several paths: which frames, pooled how.

Everything is for one clip: its tokens are [T, N, C], N in raster order of a square grid.
"""

import torch

# Size of a window (rows, columns) and what is done within it.
WINDOWS = {
    "concat": (1, 1, "mean"),
    "spatial_1d_max_pool": (1, 2, "max"),
    "spatial_1d_avg_pool": (1, 2, "mean"),
    "vertical_1d_max_pool": (2, 1, "max"),
    "spatial_2d_max_pool": (2, 2, "max"),
    "spatial_2d_avg_pool": (2, 2, "mean"),
    "spatial_temporal_pool": (2, 2, "mean"),
    "temporal_global_pool": (1, 1, "mean"),
}
# Means over this many parts of a path's frames; 1 is the mean over all of them.
PARTS = {"spatial_temporal_pool": 16, "temporal_global_pool": 1}


class GridPool:
    """Pools the tokens [T, N, C] of frames to [T, K, C]; windows may overlap."""

    def __init__(self, pool: str, side: int, grid):
        if pool == "adaptive_2d_pool":
            self.rows, self.columns = adaptive_windows(side, grid[0]), adaptive_windows(side, grid[1])
            tall, wide, self.reduce = 0, 0, "mean"
        else:
            tall, wide, self.reduce = WINDOWS[pool]
            self.rows, self.columns = windows(side, tall), windows(side, wide)
        self.side, self.parts, self.paired_columns = side, PARTS.get(pool), (tall, wide) == (1, 2)
        self.num_tokens = len(self.rows) * len(self.columns)

    def __call__(self, x):
        if len(self.rows) == len(self.columns) == self.side:
            return x
        cells = x.unflatten(1, (self.side, self.side))
        if self.reduce == "mean":
            cells = cells.float()
        return reduced(reduced(cells, self.rows, 1, self.reduce), self.columns, 2, self.reduce).flatten(1, 2).to(x)


def windows(side: int, size: int) -> list[tuple[int, int]]:
    return [(start, min(start + size, side)) for start in range(0, side, size)]


def adaptive_windows(side: int, count: int) -> list[tuple[int, int]]:
    return [(side * i // count, -(-side * (i + 1) // count)) for i in range(count)]


def reduced(x, spans: list[tuple[int, int]], axis: int, reduce: str):
    """`x` with the windows of one axis in its place."""
    parts = (x.narrow(axis, start, stop - start) for start, stop in spans)
    return torch.stack([part.amax(axis) if reduce == "max" else part.mean(axis) for part in parts], axis)


class Path:
    """One path of frames: how many it takes of a clip, and how each is pooled."""

    def __init__(self, options: dict, side: int, pool: str | None = None):
        self.num_frames = options["num_frames"]
        self.pool = GridPool(pool or options["pool"], side, options["grid"])

    def num_tokens(self, num_frames: int) -> int:
        """Of that many frames."""
        if self.pool.parts is not None:
            num_frames = self.pool.parts if num_frames else 0
        return num_frames * self.pool.num_tokens

    def tokens(self, tokens):
        """Tokens [V, C] of the frames [S, N, C] that it takes, in order."""
        pooled = self.pool(tokens)
        return (pooled if self.pool.parts is None else over_frames(pooled, self.pool.parts)).flatten(0, 1)


def make_fast(options: dict, side: int) -> Path | None:
    """A path of many frames with few tokens each; None for one of no frames."""
    return None if options["num_frames"] == 0 else Path(options, side, "adaptive_2d_pool")


def over_frames(tokens, parts: int):
    """Means [P, K, C] over parts of a path's frames, in adaptive windows."""
    means = [tokens[start:stop].float().mean(0) for start, stop in adaptive_windows(len(tokens), parts)]
    return torch.stack(means).to(tokens)


def uniform(wanted, num_frames: int) -> list[int]:
    """Frame floor(T j / n), j < n: some twice where T < n. "all" takes each once."""
    if wanted == "all":
        return list(range(num_frames))
    return [num_frames * slot // wanted for slot in range(wanted)]


def few_or_all(wanted, num_frames: int) -> list[int]:
    """Uniform ones of a clip with more frames than wanted, else each of them once."""
    return uniform("all" if wanted == "all" or num_frames <= wanted else wanted, num_frames)
