"""How a picture of any shape becomes the square that a tower sees, where not a checkpoint's own processor decides."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from vlvm_jax.config import FrameFit
from vlvm_jax.data.images import stills


def to_square(
    image: Image.Image | np.ndarray, size: int, fit: FrameFit, mean: Sequence[float]
) -> UInt8[np.ndarray, "{size} {size} 3"]:
    """A picture as a square of `size` pixels, bicubic as Pillow computes it.

    Args:
      image: any mode, see `stills.rgb`; an array is [H, W, 3] uint8.
      fit: `crop` (also `auto`) scales the shorter edge and keeps the middle, as CLIP does; `squash` scales both edges;
        `pad` first puts the picture in the middle of a square in the mean colour (LLaVA-1.5's).
      mean: the tower's, per channel, of values from 0 to 1.
    """
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else stills.rgb(image)
    if fit in ("auto", "crop"):
        return resize(image, size)
    if fit == "pad":
        image = padded(image, mean)
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(image, np.uint8)


def padded(image: Image.Image, mean: Sequence[float]) -> Image.Image:
    """The picture in the middle of the smallest square, whose rest has the mean colour, rounded down."""
    side = max(image.size)
    square = Image.new("RGB", (side, side), tuple(int(255 * value) for value in mean))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def resize(image: Image.Image, size: int) -> np.ndarray:
    """CLIP's rule: shortest edge to `size` (bicubic), then the centre square. uint8 [size, size, 3].

    Of wide images only the square is computed, which takes half the time; by rounding, a few values in a thousand
    differ by one. (Of high images Pillow would go over rows and columns in the other order.)
    """
    width, height = image.size
    if (width, height) != (size, size):
        short = min(width, height)
        across, down = width * size // short, height * size // short
        left, top = (across - size) // 2, (down - size) // 2
        if width > height:
            box = (left * width / across, 0, (left + size) * width / across, height)
            image = image.resize((size, size), Image.Resampling.BICUBIC, box=box)
        else:
            image = image.resize((across, down), Image.Resampling.BICUBIC)
            image = image.crop((left, top, left + size, top + size))
    return np.asarray(image, np.uint8)
