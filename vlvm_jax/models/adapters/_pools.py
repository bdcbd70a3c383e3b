"""Pools over the square grid of a frame's tokens, as SlowFast-LLaVA and Free Video-LLM name them.

Which there are, and what they do to a grid of even sides, is as in the public code of both (docs/free_video_llm.md).
That code has no odd sides. There, our last window is narrower.
"""

import dataclasses
import math
from typing import Literal, get_args

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from vlvm_jax.errors import InputError

Pool = Literal[
    "concat",
    "spatial_1d_max_pool",
    "spatial_1d_avg_pool",
    "vertical_1d_max_pool",
    "spatial_2d_max_pool",
    "spatial_2d_avg_pool",
    "adaptive_2d_pool",
    "spatial_temporal_pool",
    "temporal_global_pool",
]
POOLS: tuple[Pool, ...] = get_args(Pool)
Window = tuple[int, int]  # start and stop along a side

# Size of a window (rows, columns) and what is done within it.
_WINDOWS: dict[str, tuple[int, int, Literal["max", "mean"]]] = {
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
_PARTS = {"spatial_temporal_pool": 16, "temporal_global_pool": 1}


@dataclasses.dataclass(frozen=True)
class GridPool:
    """Pools the tokens of a frame; raster order in and out.

    Attributes:
      side: of the square grid that comes in.
      rows, columns: the windows, which may overlap.
      reduce: what is done within a window.
      parts: of a path's frames, each of which is averaged; None where frames stay by themselves.
      paired_columns: made of pairs of neighbours within a row; Free Video-LLM's code swaps the sides of their grid.
    """

    side: int
    rows: tuple[Window, ...]
    columns: tuple[Window, ...]
    reduce: Literal["max", "mean"]
    parts: int | None = None
    paired_columns: bool = False

    @property
    def num_tokens(self) -> int:
        return len(self.rows) * len(self.columns)

    def __call__(self, x: Float[Array, "*batch N D"]) -> Float[Array, "*batch K D"]:
        *batch, _, width = x.shape
        x = x.reshape(*batch, self.side, self.side, width)
        if len(self.rows) == len(self.columns) == self.side:
            return x.reshape(*batch, -1, width)
        dtype = x.dtype
        if self.reduce == "mean":
            x = x.astype(jnp.float32)
        x = _reduced(_reduced(x, self.rows, -3, self.reduce), self.columns, -2, self.reduce)
        return x.reshape(*batch, self.num_tokens, width).astype(dtype)

    def shares(self) -> np.ndarray:
        """[K, N] which patches a token is of, each row of sum 1."""
        axes = [np.zeros((len(windows), self.side), np.float32) for windows in (self.rows, self.columns)]
        for axis, windows in zip(axes, (self.rows, self.columns), strict=True):
            for index, (start, stop) in enumerate(windows):
                axis[index, start:stop] = 1 / (stop - start)
        return np.einsum("ab,cd->acbd", *axes).reshape(self.num_tokens, self.side**2)


def grid_pool(pool: Pool, side: int, size: tuple[int, int] | None = None, *, where: str) -> GridPool:
    """The pool of that name for a grid of `side` x `side` tokens.

    Args:
      size: rows and columns of `adaptive_2d_pool`, for no other.
      where: the key of the pool's options, for messages.

    Raises:
      InputError: a size that is missing, out of place or larger than the grid.
    """
    if (pool == "adaptive_2d_pool") != (size is not None):
        raise InputError(f"{where}.grid: rows and columns of adaptive_2d_pool, and of no other pool (found {pool})")
    if size is not None:
        if max(size) > side:
            raise InputError(f"{where}.grid: {size[0]} x {size[1]} is larger than the grid of {side} x {side} tokens")
        return GridPool(side, adaptive_windows(side, size[0]), adaptive_windows(side, size[1]), "mean")
    tall, wide, reduce = _WINDOWS[pool]
    paired = (tall, wide) == (1, 2)
    return GridPool(side, _windows(side, tall), _windows(side, wide), reduce, _PARTS.get(pool), paired)


def adaptive_windows(side: int, count: int) -> tuple[Window, ...]:
    """Window i of n: [floor(side * i / n), ceil(side * (i + 1) / n)), as torch's adaptive pools have them."""
    return tuple((side * i // count, -(-side * (i + 1) // count)) for i in range(count))


def over_frames(
    tokens: Float[Array, "B T K C"], valid: Bool[Array, "B T"], parts: int
) -> tuple[Float[Array, "B P K C"], Bool[Array, "B P"]]:
    """Means over parts of a path's frames, in adaptive windows over as many as are valid, which come first."""
    weights = part_weights(valid, parts)
    means = jnp.einsum("bpt,btkc->bpkc", weights, tokens.astype(jnp.float32))
    any_frame = valid.any(-1, keepdims=True)
    return means.astype(tokens.dtype), jnp.broadcast_to(any_frame, (len(valid), parts))


def part_weights(valid: Bool[Array, "B T"], parts: int) -> Float[Array, "B P T"]:
    """Each row of sum 1, or zero where there are no frames."""
    count: Int[Array, "B 1 1"] = valid.sum(-1)[:, None, None]
    part, frame = jnp.arange(parts)[:, None], jnp.arange(valid.shape[1])
    inside = (frame >= count * part // parts) & (frame < -(-count * (part + 1) // parts))
    return inside / jnp.maximum(inside.sum(-1, keepdims=True), 1)


def _windows(side: int, size: int) -> tuple[Window, ...]:
    return tuple((start, min(start + size, side)) for start in range(0, side, size))


def _reduced(x: Float[Array, "*any"], windows: tuple[Window, ...], axis: int, reduce: str) -> Float[Array, "*any"]:
    """`x` with the windows of one axis in its place."""
    function = jnp.max if reduce == "max" else jnp.mean
    axis %= x.ndim
    side, sizes = x.shape[axis], {stop - start for start, stop in windows}
    if len(windows) == side:
        return x
    if len(sizes) == 1 and math.prod((len(windows), *sizes)) == side:  # whole windows side by side
        split = (*x.shape[:axis], len(windows), *sizes, *x.shape[axis + 1 :])
        return function(x.reshape(split), axis=axis + 1)
    parts = [jnp.take(x, jnp.arange(start, stop), axis=axis) for start, stop in windows]
    return jnp.stack([function(part, axis=axis) for part in parts], axis=axis)
