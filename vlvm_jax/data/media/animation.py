"""Reads clips in WebP, PNG and AVIF, whose animations FFmpeg does not play in full, with Pillow.

The file becomes a lossless clip in memory, so that it is treated like any other clip: the same frame rules, spans,
limits and re-encoding. Transparent pixels are put on white.
"""

import io
from collections.abc import Iterator
from fractions import Fraction
from typing import BinaryIO

import av
import numpy as np
from PIL import Image, UnidentifiedImageError

from vlvm_jax.data.faults import BadSampleError, reading
from vlvm_jax.data.images import stills
from vlvm_jax.data.media.pixels import MAX_PIXELS

# Pixels of all frames together: 35 s of 640 x 480 at 25 a second. Each takes up to 3 bytes of the clip in memory.
MAX_ANIMATION = 2**28
_CLOCK = 1000  # ticks per second: these formats state milliseconds
_AVIF_SEQUENCE = b"ftypavis"
_UNSTATED = 100  # ms for which a frame of duration 0 is shown, as in browsers


def as_clip(file: BinaryIO, name: str) -> BinaryIO:
    """The file itself, or, if it is a WebP, PNG or AVIF, a clip of the same frames and times.

    Args:
      name: for messages.

    Raises:
      BadSampleError: `corrupt` or `too_large`.
      StorageError, InputError: as the file raises it.
    """
    head = file.read(16)
    file.seek(0)
    if not _may_move(head):
        return file
    with reading(name):
        try:
            image = Image.open(file)
        except UnidentifiedImageError:
            if head[4:12] != _AVIF_SEQUENCE:
                raise
            raise BadSampleError("corrupt", f"{name}: an animated AVIF that this Pillow does not read") from None
    with image:
        if image.width * image.height > MAX_PIXELS:
            raise BadSampleError("too_large", f"{name} has frames of {image.width} x {image.height} pixels")
        count = getattr(image, "n_frames", 1)
        if image.width * image.height * count > MAX_ANIMATION:
            raise BadSampleError(
                "too_large",
                f"{name} is an animation of {count} frames of {image.width} x {image.height}, more than "
                f"{MAX_ANIMATION} pixels in all; make it a video file",
            )
        return _lossless(image, name)


def _may_move(head: bytes) -> bool:
    """Whether these are the first 16 bytes of a WebP, PNG or AVIF file."""
    webp = head[:4] == b"RIFF" and head[8:12] == b"WEBP"
    return webp or head[4:12] in (_AVIF_SEQUENCE, b"ftypavif") or head[:8] == b"\x89PNG\r\n\x1a\n"


def _lossless(image: Image.Image, name: str) -> BinaryIO:
    made, unit = io.BytesIO(), Fraction(1, _CLOCK)
    with av.open(made, "w", format="mov") as container:
        stream = container.add_stream("qtrle", rate=_CLOCK)
        stream.pix_fmt, stream.time_base, stream.codec_context.time_base = "rgb24", unit, unit
        stream.codec_context.thread_count, stream.codec_context.gop_size = 1, 1
        for start, duration, shown in _frames(image, name):
            if not stream.codec_context.is_open:
                stream.width, stream.height = shown.size
            frame = av.VideoFrame.from_ndarray(np.asarray(shown), format="rgb24")
            frame.pts, frame.duration, frame.time_base = start, duration, unit
            for packet in stream.encode(frame):
                packet.duration = duration  # the last one's too, which no later frame ends
                container.mux(packet)
        container.mux(stream.encode(None))
    made.seek(0)
    return made


def _frames(image: Image.Image, name: str) -> Iterator[tuple[int, int, Image.Image]]:
    """Start and duration in ms, and the picture, of every frame that decodes; a truncated file has fewer."""
    start, first = 0, int(getattr(image, "default_image", False))  # a PNG's picture for viewers that cannot play it
    for number in range(first, getattr(image, "n_frames", 1)):
        try:
            with reading(name):
                image.seek(number)
                shown = stills.upright_rgb(image, name)
        except (BadSampleError, EOFError):
            if number == first:
                raise
            return
        duration = max(0, round(image.info.get("duration") or 0)) or _UNSTATED
        yield start, duration, shown
        start += duration
