"""Where the visual tokens of one image or clip come from, for families that cut an image into tiles.

Everything here follows from sizes alone, so it is worked out with numpy while loading and the device only gathers:

    token_v = sum_p weight[v, p] * slots[index[v, p]]

Each frame (the whole image first, then its tiles in raster order) has S = N + 1 slots: its N patches in raster order,
then the newline embedding. `index` counts them through all frames of the medium: `frame * S + slot`.

The rules are those of `pack_image_features` in transformers' LLaVA-NeXT and LLaVA-OneVision, and of Idefics3's
image processor.
"""

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

Size = tuple[int, int]  # height, width

MAX_IMAGE_SIDE = 4096  # Idefics3 never scales an image beyond this


@dataclasses.dataclass(frozen=True)
class Layout:
    """Sources of a medium's V visual tokens, P for each; spare ones have weight 0.

    Attributes:
      index: [V, P] slots, relative to the medium's first frame.
      weight: [V, P].
    """

    index: Int[np.ndarray, "V P"]
    weight: Float[np.ndarray, "V P"]

    def __len__(self) -> int:
        return len(self.index)


def max_tiles(ratio: Any) -> int | None:
    """n of `anyres_max_<n>`, as OneVision's configs have it; None for anything else, also for n below 1."""
    match = re.fullmatch(r"anyres_max_0*([1-9][0-9]*)", str(ratio))
    return None if match is None else int(match[1])


def best_resolution(size: Size, pinpoints: Sequence[Sequence[int]]) -> Size:
    """Of the canvases on offer the one that keeps most of the image's pixels, and among those wastes least."""

    def key(canvas: Sequence[int]) -> tuple[int, int]:
        (height, width), (tall, wide) = size, canvas
        scale = min(wide / width, tall / height)
        kept = min(int(width * scale) * int(height * scale), width * height)
        return kept, kept - wide * tall

    height, width = max(pinpoints, key=key)  # the first of equals, as transformers has it
    return height, width


def unpadded(size: Size, grid: Size) -> tuple[slice, slice]:
    """Rows and columns of a canvas of `grid` patches that the image covers, once its padding is taken off."""
    (height, width), (rows, columns) = size, grid
    if width / height > columns / rows:
        padding = (rows - int(round(height * (columns / width), 7))) // 2
        return slice(padding, rows - padding), slice(0, columns)
    padding = (columns - int(round(width * (rows / height), 7))) // 2
    return slice(0, rows), slice(padding, columns - padding)


def tiled(
    size: Size,
    pinpoints: Sequence[Sequence[int]],
    tile: int,
    side: int,
    *,
    taps: int = 1,
    max_tiles: int | None = None,
) -> Layout:
    """The layout of an image that is shown whole and in tiles: the whole one's patches, then the rows of the canvas
    without its padding, each with a newline at its end.

    Args:
      size: of the original image.
      tile: pixels of a tile's side.
      side: patches of a tile's side.
      taps: P; more than 1 are only needed with `max_tiles`.
      max_tiles: OneVision's `anyres_max_<n>`: a canvas of clearly more patches than n tiles is shrunk to about that
        many by bilinear interpolation, which takes 4 taps.

    Raises:
      ValueError: nothing would be left of the image's shorter side (transformers fails too).
    """
    tall, wide = best_resolution(size, pinpoints)
    tile_rows, tile_columns = tall // tile, wide // tile
    rows, columns = unpadded(size, (tile_rows * side, tile_columns * side))
    places = _slots(tile_rows, tile_columns, side)[rows, columns]
    height, width = places.shape
    index, weight = places[:, :, None], np.ones((height, width, 1))
    ratio = math.sqrt(height * width / (max_tiles * side**2)) if max_tiles else 0
    if ratio > 1.1:
        if min(height, width) < ratio:
            raise ValueError(
                f"an image of {size[0]} x {size[1]} pixels is too narrow to be shrunk to {max_tiles} tiles"
            )
        index, weight = _shrunk(places, int(height // ratio), int(width // ratio))
    newline = np.full((index.shape[0], 1, index.shape[2]), side**2)
    ending = np.zeros(newline.shape)
    ending[:, :, 0] = 1
    body = _layout(np.concatenate([index, newline], 1), np.concatenate([weight, ending], 1), taps)
    whole = in_order(1, side**2, side**2, taps=taps)
    return Layout(np.concatenate([whole.index, body.index]), np.concatenate([whole.weight, body.weight]))


def in_order(frames: int, tokens: int, patches: int, *, newline: bool = False, taps: int = 1) -> Layout:
    """The layout of frames whose tokens fill the first slots: a clip, or an image that is not cut into tiles.

    Args:
      tokens: per frame, at most `patches`, which is N.
      newline: one newline after the last frame.
    """
    index = (np.arange(frames)[:, None] * (patches + 1) + np.arange(tokens)).reshape(-1)
    if newline:
        index = np.append(index, (frames - 1) * (patches + 1) + patches)
    return _layout(index[:, None], np.ones((len(index), 1)), taps)


def num_tiles(size: Size, pinpoints: Sequence[Sequence[int]], tile: int) -> int:
    """Frames that `tiled` reads: the whole image and its tiles."""
    tall, wide = best_resolution(size, pinpoints)
    return 1 + (tall // tile) * (wide // tile)


def split_grid(size: Size, longest: int, tile: int) -> Size:
    """Rows and columns of Idefics3's tiles, (0, 0) for an image that fits one.

    Args:
      longest: the longer edge that images are scaled to first.
    """
    height, width = _scaled(size, longest)
    if size[1] >= size[0]:  # the shorter edge is made even
        height += height % 2
    else:
        width += width % 2
    if max(height, width) > MAX_IMAGE_SIDE:
        height, width = _scaled((height, width), MAX_IMAGE_SIDE)
    height, width = _scaled((height, width), math.ceil(max(height, width) / tile) * tile)
    rows, columns = math.ceil(height / tile), math.ceil(width / tile)
    return (rows, columns) if rows > 1 or columns > 1 else (0, 0)


def _scaled(size: Size, longest: int) -> Size:
    """The longer edge becomes `longest`, the other one follows, rounded down."""
    height, width = size
    ratio = width / height
    if width >= height:
        return max(int(longest / ratio), 1), longest
    return longest, max(int(longest * ratio), 1)


def _slots(tile_rows: int, tile_columns: int, side: int) -> Int[np.ndarray, "R C"]:
    """The slot of every patch of the canvas, in the frames after the first."""
    row, column = np.ogrid[: tile_rows * side, : tile_columns * side]
    frame = 1 + (row // side) * tile_columns + column // side
    return frame * (side**2 + 1) + (row % side) * side + column % side


def _shrunk(places: Int[np.ndarray, "R C"], rows: int, columns: int):
    """Taps and weights [rows, columns, 4] of torch's `interpolate(mode="bilinear", align_corners=False)`."""
    (y0, y1, wy), (x0, x1, wx) = (_axis(*sizes) for sizes in zip(places.shape, (rows, columns), strict=True))
    corners = [places[np.ix_(y, x)] for y in (y0, y1) for x in (x0, x1)]
    weights = [y[:, None] * x for y in (1 - wy, wy) for x in (1 - wx, wx)]
    return np.stack(corners, -1), np.stack(weights, -1)


def _axis(length: int, resized: int):
    """Lower and upper source of each of `resized` points, and how much of the upper."""
    centre = np.maximum((np.arange(resized) + 0.5) * (length / resized) - 0.5, 0)
    low = np.floor(centre).astype(int)
    return low, np.minimum(low + 1, length - 1), centre - low


def _layout(index: np.ndarray, weight: np.ndarray, taps: int) -> Layout:
    """[..., p] taps in order, filled up to `taps` with ones of no weight."""
    index, weight = (x.reshape(-1, x.shape[-1]) for x in (index, weight))
    spare = [(0, 0), (0, taps - index.shape[1])]
    return Layout(np.pad(index, spare, mode="edge").astype(np.int32), np.pad(weight, spare).astype(np.float32))
