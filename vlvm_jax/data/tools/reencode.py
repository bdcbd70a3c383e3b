"""Media made smaller for training: clips in H.264 with a key frame every few, images scaled. The same bytes every time.

One thread encodes; several would do so in another order of decisions on another machine.
"""

import dataclasses
import functools
import io
from fractions import Fraction
from typing import Any, cast

import av
import numpy as np
from av.codec.context import Flags
from av.container import OutputContainer
from av.video.frame import PictureType
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream
from PIL import Image, ImageOps

from vlvm_jax.data.decoding import decode, pyav, sampling
from vlvm_jax.data.decoding.video_file import VideoFile, open_video
from vlvm_jax.data.faults import BadSampleError, reading

GOP = 16  # frames from one key frame to the next: what a seek decodes in vain, at most
CRF = 23  # x264's constant quality
_PRESET = "veryfast"
_JPEG_QUALITY = 92
_BITEXACT = {"fflags": "+bitexact"}
_CLOCK = 90_000  # ticks per second of a frame's time
_INTERPOLATION = pyav.BICUBIC | pyav.ACCURATE_RND | pyav.BITEXACT


@dataclasses.dataclass(frozen=True)
class Target:
    """What media become.

    Attributes:
      size: shorter side in pixels; nothing is enlarged. None leaves the size.
      fps: frames per second that a clip keeps at most, each with its own time. None keeps all.
    """

    size: int | None = None
    fps: float | None = None

    @property
    def asked(self) -> bool:
        return self.size is not None or self.fps is not None


AS_THEY_ARE = Target()


def clip(data: bytes, target: Target, where: str) -> bytes:
    """A clip as MP4, upright, without audio.

    Args:
      where: the clip's name, for messages.

    Raises:
      BadSampleError: `no_video`, `corrupt`, `too_large` or `empty`.
    """
    made = io.BytesIO()
    with (
        open_video(io.BytesIO(data), where) as source,
        av.open(made, "w", format="mp4", options=_BITEXACT) as container,
    ):
        written = _encode(source, container, target)
    if not written:
        raise BadSampleError("empty", f"{where} holds no frame")
    return made.getvalue()


def probe(data: bytes, where: str) -> None:
    """Raises what `clip` would for a clip of which no two frames can be had."""
    two = functools.partial(sampling.choose, count=2, rule="uniform")
    decode.take_frames(io.BytesIO(data), where, two, lambda pixels: pixels[:1, :1], at_most=2)


def _encode(source: VideoFile, container: OutputContainer, target: Target) -> int:
    """Writes the frames that are kept, each with its time; returns how many."""
    resize, encoder, written, slot, last, start = VideoReformatter(), None, 0, -1, -1, None
    for number, frame in enumerate(source.container.decode(source.stream)):
        time = float(number / (source.rate or 1)) if source.numbered or frame.time is None else frame.time
        start = time if start is None else start
        if target.fps is not None:  # the first frame of every 1/fps seconds
            now = int((time - start) * target.fps + 1e-6)
            if now <= slot:
                continue
            slot = now
        frame = _upright(frame)
        encoder = encoder or _encoder(container, frame, target)
        size = {"width": encoder.width, "height": encoder.height}
        scaled = pyav.reformat(resize, frame, **size, format="yuv420p", interpolation=_INTERPOLATION)
        last = max(round((time - start) * _CLOCK), last + 1)
        scaled.pts, scaled.time_base, scaled.pict_type = last, Fraction(1, _CLOCK), PictureType.NONE
        container.mux(encoder.encode(scaled))
        written += 1
    if encoder is not None:
        container.mux(encoder.encode(None))
    return written


def _encoder(container: OutputContainer, frame: av.VideoFrame, target: Target) -> VideoStream:
    """The stream to write, of the size that the first frame gives."""
    stream = container.add_stream("libx264", rate=Fraction(target.fps or 30).limit_denominator(1001))
    stream.width, stream.height = _even(frame.width, frame.height, target.size)
    stream.pix_fmt, stream.time_base = "yuv420p", Fraction(1, _CLOCK)
    context = stream.codec_context
    context.thread_count, context.gop_size, context.time_base = 1, GOP, Fraction(1, _CLOCK)
    context.flags |= Flags.bitexact
    context.options = {"crf": str(CRF), "preset": _PRESET, "sc_threshold": "0"}
    return stream


def _upright(frame: av.VideoFrame) -> av.VideoFrame:
    """The frame turned as its side data says it is to be shown."""
    turns = round(frame.rotation / 90) % 4
    if not turns:
        return frame
    pixels = np.rot90(frame.to_ndarray(format="rgb24"), turns)
    return av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels, np.uint8), format="rgb24")


def _scaled(width: int, height: int, short: int | None) -> tuple[int, int]:
    """Width and height with the shorter side `short`, never larger than they were."""
    if short is None or min(width, height) <= short:
        return width, height
    factor = short / min(width, height)
    return round(width * factor), round(height * factor)


def _even(width: int, height: int, short: int | None) -> tuple[int, int]:
    """The same, in even numbers of pixels, as yuv420p has it."""
    width, height = _scaled(width, height, short)
    return max(2, width - width % 2), max(2, height - height % 2)


def image(data: bytes, target: Target, where: str) -> bytes:
    """An image; as it is unless it is to be smaller. A smaller JPEG stays a JPEG, all else becomes PNG, upright.

    Raises:
      BadSampleError: `corrupt` or `too_large`.
    """
    with reading(where), Image.open(io.BytesIO(data)) as opened:
        upright = ImageOps.exif_transpose(opened).convert("RGB")  # decodes it all
        if _scaled(*opened.size, target.size) == opened.size:
            return data
        form = "JPEG" if opened.format == "JPEG" else "PNG"
    smaller = upright.resize(_scaled(*upright.size, target.size), Image.Resampling.BICUBIC)
    made = io.BytesIO()
    smaller.save(made, form, **cast(Any, {"quality": _JPEG_QUALITY} if form == "JPEG" else {}))
    return made.getvalue()
