"""A clip as one image: its frames as the tiles of a grid, in reading order (IG-VLM, arXiv 2403.18406)."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from PIL import Image


@dataclasses.dataclass(frozen=True)
class Stills:
    """A clip's frames at their own sizes, each [H, W, 3] uint8, in time order."""

    frames: tuple[np.ndarray, ...]

    @property
    def nbytes(self) -> int:
        return sum(frame.nbytes for frame in self.frames)


def shape(count: int) -> tuple[int, int]:
    """Rows and columns for `count` tiles: round(sqrt(count)) columns, and as many rows as that takes."""
    columns = round(math.sqrt(count))
    return math.ceil(count / columns), columns


def size(height: int, width: int, count: int) -> tuple[int, int]:
    """Height and width of the image of `count` tiles of this height and width."""
    rows, columns = shape(count)
    return rows * height, columns * width


def image(frames: Sequence[np.ndarray], count: int) -> Image.Image:
    """One image of a clip's frames, as they are (IG-VLM scales nothing before the model's own processor does).

    Frames of different sizes are all scaled to the smallest (of the least area, the first of equals; bicubic). Tiles
    that there is no frame for are white; so are those of a clip of fewer than `count` frames, of which IG-VLM's code
    shows nothing at all (our choice: the grid that the model is shown keeps its shape).

    Args:
      frames: [H, W, 3] uint8, in time order; at least one, at most `count`.
      count: frames asked for, from which the grid's shape follows.
    """
    tiles = [Image.fromarray(frame) for frame in frames]
    smallest = min((tile.size for tile in tiles), key=lambda edges: edges[0] * edges[1])
    width, height = smallest
    tall, wide = size(height, width, count)
    _, columns = shape(count)
    whole = Image.new("RGB", (wide, tall), (255, 255, 255))
    for number, tile in enumerate(tiles):
        row, column = divmod(number, columns)
        scaled = tile if tile.size == smallest else tile.resize(smallest, Image.Resampling.BICUBIC)
        whole.paste(scaled, (column * width, row * height))
    return whole
