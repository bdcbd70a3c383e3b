"""Converts any image that Pillow opens to upright RGB. Only this module decides how.

Transparent pictures are put on white, as the image processors of all supported families do. 16-bit values are divided
by 257. Of an animation the first frame counts; `media.animation` reads all of them.
"""

import numpy as np
from PIL import ExifTags, Image

from vlvm_jax.data.faults import BadSampleError

_UPRIGHT = {  # EXIF's orientation to the transposition that shows the picture upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_LYING = (5, 6, 7, 8)  # rows and columns are exchanged


def upright_rgb(image: Image.Image, where: str) -> Image.Image:
    """A picture as it is shown: decoded, turned as its EXIF orientation says, on white, in RGB.

    Args:
      where: the picture's name, for messages.

    Raises:
      BadSampleError: `corrupt`: the range of its values is unknown.
      OSError, ValueError, SyntaxError, Image.DecompressionBombError: it does not decode.
    """
    image.load()  # TIFF files turn themselves here
    turn = _UPRIGHT.get(_orientation(image))
    converted = rgb(image, where)
    return converted if turn is None else converted.transpose(turn)


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Height and width of `upright_rgb`, for most formats without decoding."""
    lying = _orientation(image) in _LYING and image.format != "TIFF"  # Pillow gives a TIFF's upright size
    return (image.width, image.height) if lying else (image.height, image.width)


def rgb(image: Image.Image, where: str = "an image") -> Image.Image:
    """A picture in RGB: transparent ones on white, 16 bits a channel by value / 257.

    Raises:
      BadSampleError: `corrupt`: the range of its values is unknown.
    """
    if image.mode.startswith("I"):  # 16 bits, and what holds 16 bits in 32
        image = _eight_bits(image, 65535, where)
    elif image.mode == "F":  # no format says which range floating-point values have
        image = _eight_bits(image, 1 if np.asarray(image).max() <= 1 else 255, where)
    elif image.mode in ("La", "RGBa"):  # multiplied by alpha
        image = image.convert("LA" if image.mode == "La" else "RGBA")
    if not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")
    image = image.convert("RGBA")
    ground = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(ground, image).convert("RGB")


def _eight_bits(image: Image.Image, most: int, where: str) -> Image.Image:
    """A picture of one channel with values from 0 to `most`, in 8 bits; with alpha if one value is transparent."""
    values = np.asarray(image)
    low, high = values.min(), values.max()
    if not 0 <= low <= high <= most:  # also if one is not a number
        raise BadSampleError("corrupt", f"{where} has values from {low:g} to {high:g}; expected 0 to {most}")
    grey = Image.fromarray(np.rint(values * (255 / most)).astype(np.uint8))
    clear = image.info.get("transparency")
    if isinstance(clear, int):
        grey.putalpha(Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
    return grey


def _orientation(image: Image.Image) -> int:
    """EXIF's orientation; 1 if it is missing or broken, as in image viewers."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # Pillow raises anything from struct.error to SyntaxError here
        return 1
    return orientation if orientation in _UPRIGHT else 1
