"""Converts decoded frames to the pixels that a player shows: upright, mirrored where asked, with square pixels."""

import math
import struct
from collections.abc import Iterator
from fractions import Fraction
from typing import Any, NamedTuple

import av
import numpy as np
from av.sidedata.sidedata import Type
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter
from jaxtyping import UInt8

from vlvm_jax.data.faults import BadSampleError
from vlvm_jax.data.media import pyav

MAX_PIXELS = 2**25  # of a frame as it is shown: 8192 x 4096
COLORSPACE, COLOR_RANGE = Colorspace.ITU601, ColorRange.MPEG  # what decoders take for granted if a clip does not say
_BT601, _LIMITED = (2, 5, 6), (0, 1)  # FFmpeg's AVCOL_SPC and AVCOL_RANGE, with those for "not stated"
_BICUBIC = pyav.BICUBIC | pyav.ACCURATE_RND | pyav.BITEXACT


class Orientation(NamedTuple):
    """One of the eight ways to show a picture.

    Attributes:
      transposed: rows become columns. This comes first.
      mirrored: left and right are swapped.
      upside_down: top and bottom are swapped.
    """

    transposed: bool = False
    mirrored: bool = False
    upside_down: bool = False

    def apply(self, pixels: UInt8[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "h w 3"]:
        """The picture as it is shown."""
        if self == UPRIGHT:
            return pixels
        pixels = pixels.swapaxes(0, 1) if self.transposed else pixels
        pixels = pixels[:, ::-1] if self.mirrored else pixels
        return np.ascontiguousarray(pixels[::-1] if self.upside_down else pixels)


UPRIGHT = Orientation()


def _orientations() -> Iterator[tuple[Orientation, tuple[int, int, int, int]]]:
    """Every orientation with its matrix (a, b, c, d): a stored point (x, y) is shown at (ax + cy, bx + dy)."""
    for transposed in (False, True):
        for mirrored in (False, True):
            for upside_down in (False, True):
                across, down = (-1 if mirrored else 1), (-1 if upside_down else 1)
                matrix = (0, down, across, 0) if transposed else (across, 0, 0, down)
                yield Orientation(transposed, mirrored, upside_down), matrix


_ORIENTATIONS = tuple(_orientations())


def orientation(frame: av.VideoFrame) -> Orientation:
    """The orientation nearest to a frame's display matrix; upright without one.

    PyAV's `frame.rotation` is an angle and cannot tell a mirrored picture from a turned one.
    """
    side_data: Any = frame.side_data  # PyAV's stubs know fewer keys than it takes
    matrix = side_data.get(Type.DISPLAYMATRIX)
    if matrix is None:
        return UPRIGHT
    a, b, _, c, d, *_ = struct.unpack("=9i", bytes(matrix))
    return max(_ORIENTATIONS, key=lambda one: sum(m * n for m, n in zip(one[1], (a, b, c, d), strict=True)))[0]


def _has_default_colors(frame: av.VideoFrame) -> bool:
    """Whether a frame is YUV of `COLORSPACE` and `COLOR_RANGE`, stated or not."""
    form = frame.format.name
    is_yuv = form.startswith("yuv4") and "a" not in form
    return is_yuv and int(frame.colorspace) in _BT601 and int(frame.color_range) in _LIMITED


class Converter:
    """Converts the frames of one clip. It keeps one conversion context, and converts in the calling thread: a context
    for each frame, or threads, take longer than decoding a small clip.

    Args:
      name: of the clip, in messages.
      aspect: width / height of a stored pixel, the same for the whole clip; 0 (unknown) counts as 1.
    """

    def __init__(self, name: str, aspect: Fraction):
        self._name, self._aspect = name, aspect or Fraction(1)
        self._reformatter = VideoReformatter()

    def __call__(self, frame: av.VideoFrame) -> UInt8[np.ndarray, "H W 3"]:
        """A frame as it is shown: RGB, upright, with square pixels.

        Raises:
          BadSampleError: `too_large` or `corrupt`, if its pixels' shape gives it an impossible size.
        """
        width, height = self._square(frame)
        stretched = {} if width == frame.width else {"width": width, "height": height, "interpolation": _BICUBIC}
        converted = pyav.reformat(self._reformatter, frame, format="rgb24", **stretched)
        return orientation(frame).apply(converted.to_ndarray())

    def size(self, frame: av.VideoFrame) -> tuple[int, int]:
        """Width and height of a frame as it is shown; errors as for a call."""
        width, height = self._square(frame)
        return (height, width) if orientation(frame).transposed else (width, height)

    def scaled(self, frame: av.VideoFrame, width: int, height: int) -> av.VideoFrame:
        """A frame as it is shown, scaled, as yuv420p of `COLORSPACE` and `COLOR_RANGE`; errors as for a call.

        Unless a frame already has these colours, it is converted to RGB first, as a call does. Between two YUV formats,
        it depends on PyAV's version whether libswscale converts the colour space and range that the source states.
        """
        self._square(frame)
        to: dict[str, Any] = {"width": width, "height": height, "format": "yuv420p", "interpolation": _BICUBIC}
        if orientation(frame) != UPRIGHT or not _has_default_colors(frame):
            frame = av.VideoFrame.from_ndarray(self(frame), format="rgb24")
            to |= {"dst_colorspace": COLORSPACE, "dst_color_range": COLOR_RANGE}
        return pyav.reformat(self._reformatter, frame, **to)

    def _square(self, frame: av.VideoFrame) -> tuple[int, int]:
        """Width and height of the stored frame with square pixels: the height stays."""
        width = math.floor(frame.width * self._aspect + Fraction(1, 2))
        if width < 1:
            stored = f"{frame.width} x {frame.height}, {float(self._aspect):g} as wide as high"
            raise BadSampleError("corrupt", f"{self._name} has pixels too narrow to show ({stored})")
        if width * frame.height > MAX_PIXELS:
            raise BadSampleError("too_large", f"{self._name} has frames shown at {width} x {frame.height} pixels")
        return width, frame.height
