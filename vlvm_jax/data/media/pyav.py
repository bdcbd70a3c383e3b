"""Adapts PyAV 15 to 19 to one interface. The only module that knows how the versions differ.

PyAV 15 and 16 lack a stream's index, `discard` and the reorder depth. Frames are the same there, but more is read.
"""

import errno
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, BinaryIO, cast

import av
from av import error as av_error
from av import stream as av_stream
from av.container import InputContainer
from av.stream import Stream
from av.video.codeccontext import VideoCodecContext
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

# libswscale's flags. `av.video.reformatter.Interpolation` has the last two since PyAV 18.
BICUBIC, ACCURATE_RND, BITEXACT = 0x4, 0x40000, 0x80000

# With B-frames, x264's macroblock tree reads memory that it has not set: the same frames give other bytes, run by run.
REPRODUCIBLE_X264 = {"threads": "1", "x264-params": "mbtree=0"}

# What FFmpeg's EINVAL raises: `ValueError` of `av.error` in PyAV 15 and 16, `ArgumentError` since 17.
ArgumentError: type[av.FFmpegError] = cast(Any, av_error).classes[errno.EINVAL]

_MAJOR = int(av.__version__.partition(".")[0])
_HAS_METADATA_ERRORS = _MAJOR < 19  # PyAV 19 itself keeps metadata that is not UTF-8
_HAS_INDEX = hasattr(VideoStream, "index_entries")
_HAS_DISCARD = hasattr(Stream, "discard")
_HAS_DEPTH = hasattr(VideoCodecContext, "reorder_depth")
_HAS_THREADS = _MAJOR >= 17
_MAX_DEPTH = 16  # frames, of H.264 and HEVC

__all__ = [
    "ACCURATE_RND",
    "BICUBIC",
    "BITEXACT",
    "REPRODUCIBLE_X264",
    "ArgumentError",
    "discard",
    "fraction",
    "index_of",
    "open_input",
    "reformat",
    "reorder_depth",
]


def open_input(file: BinaryIO | str, options: dict[str, str] | None = None) -> InputContainer:
    """Opens a media file for reading, also one whose metadata is not UTF-8.

    Raises:
      av.FFmpegError: FFmpeg does not open it.
    """
    arguments: dict[str, Any] = {"metadata_errors": "ignore"} if _HAS_METADATA_ERRORS else {}
    # In PyAV 15 and 16 `options` break the heap where streams appear while the file is probed (MPEG-PS, TS, FLV).
    arguments["options" if _MAJOR >= 17 else "container_options"] = options or {}
    return av.open(file, "r", **arguments)


def fraction(value: Any) -> Fraction | None:
    """A rational attribute of PyAV's (`time_base`, `average_rate`, ...) as a Fraction; None where it is not set.

    PyAV 19 gives an `AVRational`, which is 0/1 or x/0 where it is not set; PyAV below 19 a Fraction or None.
    """
    return Fraction(value.numerator, value.denominator) if value else None


def index_of(stream: VideoStream) -> Sequence[Any]:
    """The container's index of a stream (`search_timestamp` finds entries in it); empty where there is none."""
    return cast(Any, stream).index_entries if _HAS_INDEX else ()


def discard(stream: Stream) -> None:
    """Has the demuxer skip a stream's packets, where PyAV can."""
    if _HAS_DISCARD:
        cast(Any, stream).discard = cast(Any, av_stream).Discard.all


def reorder_depth(codec: VideoCodecContext) -> int:
    """By how many frames decoding may run ahead of what is shown; an upper bound where PyAV does not tell."""
    if _HAS_DEPTH:
        return cast(Any, codec).reorder_depth
    return _MAX_DEPTH if codec.has_b_frames else 0


def reformat(reformatter: VideoReformatter, frame: av.VideoFrame, **to: Any) -> av.VideoFrame:
    """`reformatter.reformat` without threads of its own, which would take longer than converting small frames.

    Args:
      to: `width`, `height`, `format`, `interpolation` (libswscale's flags), `dst_colorspace`, `dst_color_range`.
    """
    options: dict[str, Any] = {"threads": 1} if _HAS_THREADS else {}
    return reformatter.reformat(frame, **to, **options)
