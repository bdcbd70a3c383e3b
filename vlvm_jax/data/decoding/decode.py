"""Frames of a video file by their times: seek to the keyframe before, decode to the frame shown then. PyAV.

A long file is never decoded as a whole for a few frames, and never more than the frames asked for are held. The frames
are the very ones that decoding everything and counting gives, for clips of constant rate; of others, those shown at
the same times.
"""

import bisect
import contextlib
import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import BinaryIO

import av
import numpy as np
from jaxtyping import UInt8

from vlvm_jax.data.decoding.cursor import Cursor, Picture
from vlvm_jax.data.decoding.pixels import Converter
from vlvm_jax.data.decoding.video_file import VideoFile, open_video
from vlvm_jax.data.faults import BadSampleError


@dataclasses.dataclass(frozen=True)
class Grid:
    """A clip's frames before any is decoded. Times are in the stream's units.

    Attributes:
      start: time of the first frame.
      total: number of frames.
      step: from one frame to the next, in the mean.
      unit: seconds.
      shown: when each frame is first shown, where the whole file was read.
    """

    start: int
    total: int
    step: Fraction
    unit: Fraction
    shown: tuple[int, ...] = ()

    @property
    def fps(self) -> float:
        return float(1 / (self.step * self.unit))

    def at(self, index: int) -> int:
        """A time at which frame `index` is shown: its middle, which no rounding of timestamps gives to a neighbour."""
        return self.start + math.floor((index + Fraction(1, 2)) * self.step)

    def seconds(self, time: int) -> float:
        """From the first frame on."""
        return max(0.0, float((time - self.start) * self.unit))

    def within(self, span: tuple[float, float] | None) -> tuple[int, int]:
        """First and last + 1 of the frames shown in a part of the clip, given in seconds."""
        if span is None or not self.shown or not span[0] < span[1]:
            return within(self.total, self.fps, span)
        times = [self.seconds(time) for time in self.shown]
        return max(0, bisect.bisect_right(times, span[0] + 1e-6) - 1), bisect.bisect_left(times, span[1] - 1e-6)


def within(total: int, fps: float, span: tuple[float, float] | None) -> tuple[int, int]:
    """First and last + 1 of the frames shown in a part, given in seconds, of a clip of constant rate."""
    if span is None:
        return 0, total
    if not span[0] < span[1]:
        return 0, 0
    first, last = (min(max(edge * fps, 0.0), float(total)) for edge in span)
    return int(first + 1e-6), int(np.ceil(last - 1e-6))


@dataclasses.dataclass(frozen=True)
class Taken:
    """Frames taken from a file, in time order.

    Attributes:
      times: of each frame, seconds from the file's first frame on.
      duration: of the file, in seconds.
    """

    frames: list[np.ndarray]
    times: list[float]
    duration: float


def take_frames(
    file: BinaryIO,
    name: str,
    choose: Callable[[int, float], Sequence[int]],
    to_frame: Callable[[UInt8[np.ndarray, "H W 3"]], np.ndarray],
    *,
    at_most: int,
    span: tuple[float, float] | None = None,
) -> Taken:
    """Some frames of a video file, upright, each through `to_frame` as soon as it is decoded.

    Args:
      name: of the file, in messages.
      choose: number of frames and frames per second to the frames wanted, sorted; one may come several times.
      at_most: frames that `choose` wants.
      span: seconds; only frames shown between them are chosen from.

    Raises:
      BadSampleError: `no_video`, `empty`, `corrupt`, `too_large` or `too_slow`.
      StorageError: as the file raises it.
    """
    with open_video(file, name) as video:
        grid = _stated_grid(video)
        if grid is None or grid.total <= at_most:  # each of few frames is wanted, however short it is shown
            grid = _scanned_grid(video)
        taken = _take(video, grid, choose, to_frame, at_most, span)
        if taken is None:  # the header states more than there is: choose again among that
            taken = _take(video, _scanned_grid(video), choose, to_frame, at_most, span)
    if taken is None:
        raise BadSampleError("empty", f"{name} holds no frame")
    return taken


def _take(video: VideoFile, grid: Grid, choose: Callable, to_frame: Callable, at_most: int, span) -> Taken | None:
    """None if the clip ends before a frame that the grid has."""
    first, last = grid.within(span)
    if first >= last:
        raise BadSampleError("empty", f"{video.name} holds no frame{spoken(span)}")
    chosen = Counter(first + index for index in choose(last - first, grid.fps))  # each in time order, and how often
    few = bool(grid.shown) and last - first <= at_most
    wanted = [grid.shown[index] if few else grid.at(index) for index in chosen]
    taken: dict[int, list[np.ndarray]] = {}
    to_pixels = Converter(video.name, video.pixel_aspect)
    with contextlib.closing(Cursor(video, wanted, grid.start, grid.step)) as cursor:
        for target, often in zip(wanted, chosen.values(), strict=True):
            shown = cursor.shown_at(target)
            if shown is None or (cursor.ended and not grid.shown and _over(shown, target, grid.step)):
                return None
            if shown.time not in taken:  # one that is shown for long may be wanted twice
                taken[shown.time] = [to_frame(to_pixels(shown.frame))] * often
    duration = float(grid.step * grid.unit * grid.total)
    times = [grid.seconds(time) for time, frames in taken.items() for _ in frames]
    return Taken([frame for frames in taken.values() for frame in frames], times, duration)


def grid_of(video: VideoFile) -> Grid:
    """A clip's frames as its header states them, else by all packets.

    Raises:
      BadSampleError: `empty`.
    """
    return _stated_grid(video) or _scanned_grid(video)


def spoken(span: tuple[float, float] | None) -> str:
    """A span in a message."""
    return "" if span is None else f" between {span[0]:g} s and {span[1]:g} s"


def _over(last: Picture, target: int, step: Fraction) -> bool:
    """Whether the clip's last frame was over well before a time."""
    return target - last.time > Fraction(3, 2) * max(step, last.frame.duration or 0)


def _stated_grid(video: VideoFile) -> Grid | None:
    """The frames by the header, or by the header and the last packets; None where these do not tell."""
    rate, start = video.rate, video.stream.start_time
    if not video.seeks or rate is None or start is None:
        return None
    step = 1 / (rate * video.unit)
    length = video.stream.duration if video.stream.frames else _length(video, start, step)
    if length is None or length <= 0:
        return None
    return Grid(start, max(1, round(length / step)), step, video.unit)


def _length(video: VideoFile, start: int, step: Fraction) -> int | None:
    """From the first frame to the end of the last, which is read (not decoded)."""
    if video.duration is None:
        return None
    try:
        packets = video.packets_from(max(start, int(start + video.duration - 2 / video.unit)))
    except av.FFmpegError:
        return None
    return max((p.pts + (p.duration or round(step)) - start for p in packets if p.pts is not None), default=None)


def _scanned_grid(video: VideoFile) -> Grid:
    """The frames by all packets, which are read (not decoded)."""
    packets = (packet for packet in video.packets() if packet.size and not packet.is_discard)
    found = [packet.pts for packet in packets if not video.is_cut(packet)]
    times = sorted({time for time in found if time is not None})
    if len(times) < len(found) / 2:
        video.numbered = True
    if video.numbered:
        times = list(range(len(found)))
    if not times:
        raise BadSampleError("empty", f"{video.name} holds no frame")
    unit = 1 / (video.rate or Fraction(1)) if video.numbered else video.unit
    step = Fraction(times[-1] - times[0], max(1, len(times) - 1)) or 1 / ((video.rate or 1) * unit)
    return Grid(times[0], len(times), step, unit, tuple(times))
