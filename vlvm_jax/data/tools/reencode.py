"""Re-encodes media for training: clips as H.264 with frequent key frames, images scaled down.

The bytes are the same every time (`pyav.REPRODUCIBLE_X264`).
"""

import contextlib
import dataclasses
import functools
import io
import math
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any, NamedTuple, cast

import av
from av.codec.context import Flags
from av.container import OutputContainer
from av.video.frame import PictureType
from av.video.stream import VideoStream
from PIL import Image

from vlvm_jax.data.faults import BadSampleError, reading
from vlvm_jax.data.images import stills
from vlvm_jax.data.media import decode, frame_rules
from vlvm_jax.data.media.cursor import Cursor, Picture
from vlvm_jax.data.media.decode import Grid
from vlvm_jax.data.media.pixels import COLOR_RANGE, COLORSPACE, Converter
from vlvm_jax.data.media.pyav import REPRODUCIBLE_X264
from vlvm_jax.data.media.video_file import VideoFile, open_video

GOP = 16  # frames from one key frame to the next: what a seek decodes in vain, at most
CRF = 23  # x264's constant quality
VERSION = 4  # increased whenever the same settings give other bytes than before
PROBED = 8  # frames of a clip that is judged without a config
_PRESET = "veryfast"
_JPEG_QUALITY = 92
_BITEXACT = {"fflags": "+bitexact"}
_CLOCK = 90_000  # ticks per second of a frame's time
_APART = 16  # minimum ticks between frames; with reordering, up to this many packets are decoded within one's time


@dataclasses.dataclass(frozen=True)
class Target:
    """What media become.

    Attributes:
      size: shorter side in pixels; nothing is enlarged. None leaves the size.
      fps: a clip keeps what is on screen every 1/fps seconds, each frame with its own time. None keeps all.
    """

    size: int | None = None
    fps: float | None = None

    @property
    def asked(self) -> bool:
        return self.size is not None or self.fps is not None


AS_THEY_ARE = Target()


def clip(data: bytes, target: Target, where: str) -> bytes:
    """A clip as MP4 as it is shown: upright, with square pixels, without audio.

    Frames keep their own times, and the last one its duration, so that at any time the clip shows what it did before.
    With `target.fps` a frame is kept if it is on screen at the start of one of the slots of 1/fps seconds. A frame that
    fills several slots is written once: no frame rule needs repeats, since all go by time.

    A clip is accepted if `probe` accepts it; of a damaged one, the frames that decode are kept.

    Args:
      where: the clip's name, for messages.

    Raises:
      BadSampleError: as `probe`.
    """
    made = io.BytesIO()
    with open_video(io.BytesIO(data), where) as source:
        grid = decode.grid_of(source)
        with (
            contextlib.closing(Cursor(source, (), grid.start, grid.step)) as cursor,
            av.open(made, "w", format="mp4", options=_BITEXACT) as container,
        ):
            kept = _kept(_timed(cursor.pictures(), source, grid), target.fps, grid)
            written = _encode(kept, Converter(where, source.pixel_aspect), container, target)
            damaged = cursor.damaged
    if damaged:
        probe(data, where)
    if not written:
        raise BadSampleError("empty", f"{where} holds no frame")
    return made.getvalue()


def probe(data: bytes, where: str, span: tuple[float, float] | None = None) -> None:
    """Decodes a few frames, spread over a clip or a part of it.

    Args:
      span: start and end of the part, in seconds.

    Raises:
      BadSampleError: `no_video`, `corrupt`, `too_large`, `too_slow` or `empty`.
    """
    choose = functools.partial(frame_rules.choose, count=PROBED, rule="uniform")
    decode.take_frames(io.BytesIO(data), where, choose, lambda pixels: pixels[:1, :1], at_most=PROBED, span=span)


class _Shown(NamedTuple):
    """A frame, and from when to when it is shown, in seconds from the clip's start."""

    frame: av.VideoFrame
    start: float
    end: float


def _timed(pictures: Iterator[Picture], source: VideoFile, grid: Grid) -> Iterator[_Shown]:
    """Each frame is shown until the next, the last for its duration; the first that decodes is shown from the start."""
    last, start = None, 0.0
    for picture in pictures:
        if last is not None:
            end = grid.seconds(picture.time)
            yield _Shown(last.frame, start, end)
            start = end
        last = picture
    if last is not None:
        yield _Shown(last.frame, start, _end(last, source, grid))


def _end(last: Picture, source: VideoFile, grid: Grid) -> float:
    """When the clip's last frame ends, in seconds; a header may state a longer clip than there is."""
    start, own = grid.seconds(last.time), 0 if source.numbered else last.frame.duration or 0
    if start < grid.duration <= start + float(1.5 * max(own, grid.step) * grid.unit):
        return grid.duration
    return start + float((own or grid.step) * grid.unit)


def _kept(shown: Iterator[_Shown], fps: float | None, grid: Grid) -> Iterator[_Shown]:
    """The frames on screen at the start of a slot of 1/fps seconds; each is on screen until the next that is kept."""
    early = grid.half_tick
    last: _Shown | None = None
    for one in shown:
        if fps is None or last is None or _slot(one.start - early, fps) < _slot(one.end - early, fps):
            if last is not None:
                yield last
            last = one
        else:
            last = last._replace(end=one.end)
    if last is not None:
        yield last


def _slot(time: float, fps: float) -> int:
    """The first slot that starts no earlier than a time."""
    return math.ceil(time * fps)


def _encode(kept: Iterator[_Shown], convert: Converter, container: OutputContainer, target: Target) -> int:
    """Writes frames with their times; returns how many."""
    encoder, written, last, end = None, 0, -_APART, 0
    packets: list[av.Packet] = []
    for one in kept:
        encoder = encoder or _encoder(container, convert.size(one.frame), target)
        scaled = convert.scaled(one.frame, encoder.width, encoder.height)
        last = max(round(one.start * _CLOCK), last + _APART)
        end = max(round(one.end * _CLOCK), last + _APART)
        # No type of a frame is forced: the bytes would vary.
        scaled.pts, scaled.time_base, scaled.pict_type = last, Fraction(1, _CLOCK), PictureType.NONE
        packets += encoder.encode(scaled)
        written += 1
    if encoder is not None:
        packets += encoder.encode(None)
        _set_decoding_times(packets, end)
        container.mux(packets)
    return written


def _set_decoding_times(packets: Sequence[av.Packet], end: int) -> None:
    """Sets decoding times as late as the frames allow, and has the last packet end with the clip.

    In MP4 a duration is the time from one decoding to the next. x264 sets decoding times so far before the times shown
    that, if frames are far apart, the durations add up to less than the clip's.
    """
    following = end
    for packet in reversed(packets):
        decoded = min(cast(int, packet.pts), following - 1)
        packet.dts, packet.duration = decoded, following - decoded
        following = decoded


def _encoder(container: OutputContainer, size: tuple[int, int], target: Target) -> VideoStream:
    """The stream to write; `size` is the first frame's width and height as it is shown."""
    stream = container.add_stream("libx264", rate=Fraction(target.fps or 30).limit_denominator(1001))
    stream.width, stream.height = _even(*size, target.size)
    stream.pix_fmt, stream.time_base = "yuv420p", Fraction(1, _CLOCK)
    context = stream.codec_context
    context.gop_size, context.time_base = GOP, Fraction(1, _CLOCK)
    context.colorspace, context.color_range = COLORSPACE, COLOR_RANGE
    context.flags |= Flags.bitexact
    context.options = REPRODUCIBLE_X264 | {"crf": str(CRF), "preset": _PRESET, "sc_threshold": "0"}
    return stream


def _scaled(width: int, height: int, short: int | None) -> tuple[int, int]:
    """Width and height with the shorter side `short`, never larger than they were."""
    if short is None or min(width, height) <= short:
        return width, height
    factor = short / min(width, height)
    return round(width * factor), round(height * factor)


def _even(width: int, height: int, short: int | None) -> tuple[int, int]:
    """The same, in even numbers of pixels, which yuv420p needs."""
    width, height = _scaled(width, height, short)
    return max(2, width - width % 2), max(2, height - height % 2)


def image(data: bytes, target: Target, where: str) -> bytes:
    """An image, unchanged unless it is to be smaller.

    A smaller JPEG stays a JPEG and all else becomes PNG, upright and on white (`images.stills`).

    Raises:
      BadSampleError: `corrupt` or `too_large`.
    """
    with reading(where), Image.open(io.BytesIO(data)) as opened:
        form = "JPEG" if opened.format == "JPEG" else "PNG"
        shown = stills.upright_rgb(opened, where)  # decodes it all
    size = _scaled(*shown.size, target.size)
    if size == shown.size:
        return data
    made = io.BytesIO()
    smaller = shown.resize(size, Image.Resampling.BICUBIC)
    smaller.save(made, form, **cast(Any, {"quality": _JPEG_QUALITY} if form == "JPEG" else {}))
    return made.getvalue()
