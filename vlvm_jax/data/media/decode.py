"""Frames of a video file by their times: seek to the keyframe before, decode to the frame shown then. PyAV.

A long file is never decoded as a whole for a few frames, and never more than the frames asked for are held. The frames
are the very ones that decoding everything and counting gives, for clips of constant rate; of others, those shown at
the same times.
"""

import bisect
import contextlib
import dataclasses
import itertools
import math
from collections import Counter
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import BinaryIO

import av
import numpy as np
from jaxtyping import UInt8

from vlvm_jax.data.faults import BadSampleError
from vlvm_jax.data.media.cursor import Cursor, Picture
from vlvm_jax.data.media.pixels import Converter
from vlvm_jax.data.media.video_file import VideoFile, open_video

_CUT = 0.05  # of a frame: the rounding of a header's duration
_MAX_LATE = 3  # frames by which an encoder for AVI is late
_MILLISECOND = Fraction(1, 1000)
_ROUNDING = Fraction(3, 2)  # ticks: the most that rounding a time and a duration may add up to


@dataclasses.dataclass(frozen=True)
class Grid:
    """A clip's frames before any is decoded. Times are in the stream's units.

    Attributes:
      start: time of the first frame.
      total: number of frames.
      step: from one frame to the next, in the mean.
      unit: seconds.
      length: from the first frame to the end of the last.
      shown: when each frame is first shown, where the whole file was read.
    """

    start: int
    total: int
    step: Fraction
    unit: Fraction
    length: Fraction
    shown: tuple[int, ...] = ()

    @property
    def fps(self) -> float:
        return float(1 / (self.step * self.unit))

    @property
    def duration(self) -> float:
        """Seconds, including those for which the last frame is shown."""
        return float(self.length * self.unit)

    @property
    def rounding(self) -> float:
        """Seconds by which a container's clock, which may tick only every millisecond, may make the duration too long.

        Finer clocks get the same allowance, so that a clip is equally long in every container.
        """
        return float(min(_ROUNDING * max(self.unit, _MILLISECOND), self.step * self.unit / 16))

    def at(self, index: int) -> int:
        """A time at which frame `index` is shown: its middle, which no rounding of timestamps gives to a neighbour."""
        return self.start + math.floor((index + Fraction(1, 2)) * self.step)

    def at_second(self, time: float) -> int:
        """The stream's time for a time in seconds from the first frame. A frame that starts within half a tick counts
        as shown already."""
        return self.start + math.floor((time + self.half_tick) / float(self.unit))

    @property
    def half_tick(self) -> float:
        """Seconds by which rounding to ticks may have delayed a frame; about 0 where each frame is a tick."""
        return (float(self.unit) / 2 if self.step > 2 else 0.0) + 1e-6

    def seconds(self, time: int) -> float:
        """From the first frame on."""
        return max(0.0, float((time - self.start) * self.unit))

    def within(self, span: tuple[float, float] | None) -> tuple[int, int]:
        """First and last + 1 of the frames shown in a part of the clip, given in seconds."""
        if span is None or not self.shown or not span[0] < span[1]:
            return within(self.total, self.fps, span)
        if span[0] + 1e-6 >= self.duration:
            return self.total, self.total
        times = [self.seconds(time) for time in self.shown]
        first, last = (
            bisect.bisect_right(times, span[0] + self.half_tick),
            bisect.bisect_left(times, span[1] - self.half_tick),
        )
        return max(0, first - 1), last


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
    slots: Callable[[float, float], Sequence[float]] | None = None,
) -> Taken:
    """Some frames of a video file, upright, each through `to_frame` as soon as it is decoded.

    Args:
      name: of the file, in messages.
      choose: number of frames and frames per second to the frames wanted, sorted; one may come several times.
      at_most: frames that `choose` or `slots` wants.
      span: seconds; only frames shown between them are chosen from.
      slots: used instead of `choose`: maps a clip's duration, and by how much it may be too long, to the times wanted,
        sorted; all in seconds. The frame on screen at each time is taken, even if the time before had the same one. A
        repeated frame has the time of its slot.

    Raises:
      BadSampleError: `no_video`, `empty`, `corrupt`, `too_large` or `too_slow`.
      StorageError: as the file raises it.
    """
    with open_video(file, name) as video:
        grid = _stated_grid(video)
        if grid is None or grid.total <= at_most:  # each of few frames is wanted, however short it is shown
            grid = _scanned_grid(video)
        taken = _take(video, grid, choose, to_frame, at_most, span, slots)
        if taken is None:  # the header states more than there is: choose again among that
            taken = _take(video, _scanned_grid(video), choose, to_frame, at_most, span, slots)
    if taken is None:
        raise BadSampleError("empty", f"{name} holds no frame")
    return taken


def _take(
    video: VideoFile, grid: Grid, choose: Callable, to_frame: Callable, at_most: int, span, slots
) -> Taken | None:
    """None if the clip ends before a frame that the grid has."""
    first, last = grid.within(span)
    if first >= last:
        raise BadSampleError("empty", f"{video.name} holds no frame{spoken(span)}")
    start, end = part(grid.duration, span)
    if slots is not None:
        seconds = [start + time for time in slots(end - start, grid.rounding)]
        wanted = [(grid.at_second(time), 1, time) for time in seconds]
    else:
        # Where frames are not equally far apart, the middle of one may lie outside the span.
        first_tick, last_tick = grid.at_second(start), grid.start + math.ceil(end / float(grid.unit) - 1e-6) - 1
        inside = lambda time: max(first_tick, min(time, last_tick))  # noqa: E731
        few = bool(grid.shown) and last - first <= at_most
        chosen = Counter(first + index for index in choose(last - first, grid.fps))  # in time order, and how often
        wanted = [
            (grid.shown[index] if few else inside(grid.at(index)), often, None) for index, often in chosen.items()
        ]
    frames, times, previous = [], [], None
    to_pixels = Converter(video.name, video.pixel_aspect)
    with contextlib.closing(Cursor(video, [target for target, *_ in wanted], grid.start, grid.step)) as cursor:
        for target, often, slot in wanted:
            shown = cursor.shown_at(target)
            if shown is None or (cursor.ended and not grid.shown and _over(shown, target, grid.step)):
                return None
            if shown.time != previous:
                frames += [to_frame(to_pixels(shown.frame))] * often
                times += [grid.seconds(shown.time)] * often
            elif slot is not None:
                frames.append(frames[-1])
                times.append(slot)
            previous = shown.time
    return Taken(frames, times, grid.duration)


def part(duration: float, span: tuple[float, float] | None) -> tuple[float, float]:
    """Start and end, in seconds, of a span within a clip."""
    return (0.0, duration) if span is None else (max(0.0, span[0]), min(span[1], duration))


def grid_of(video: VideoFile) -> Grid:
    """A clip's grid, from its header or else from all packets.

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
    """The grid from the header, or from the header and the last packets; None where these do not tell."""
    rate = video.rate
    start = video.start if video.seeks else None
    if rate is None or start is None or _restarts(video):
        return None
    step = 1 / (rate * video.unit)
    stated = video.stream.duration if video.stream.frames else None
    length = _length(video, start, step) if stated is None else stated
    if length is None or length <= 0 or (stated is None and video.is_small):
        return None
    total = max(1, round(length / step))
    # The header of an MP4 counts from the first frame decoded to the last, which may be less.
    ends = _length(video, start, step) or 0 if stated is not None and video.reorders else 0
    if stated is not None and video.reorders and (not video.is_constant or ends - stated > step):
        length = max(stated, ends)
        step = Fraction(length, total)
    elif stated is not None and abs(stated / step - total) > _CUT:
        # An edit list that begins within a frame leaves out that frame.
        length = _length(video, start, step) or stated
        total = max(1, round(length / step))
    return Grid(start, total, step, video.unit, _unrounded(length, total, step))


def _restarts(video: VideoFile) -> bool:
    """Whether times restart within the file; if they do, marks it to be decoded from its start."""
    try:
        video.in_order = video.restarts()
    except av.FFmpegError:
        video.in_order = True
    return video.in_order


def _length(video: VideoFile, start: int, step: Fraction) -> int | None:
    """From the first frame to the end of the last, which is read (not decoded)."""
    if video.duration is None:
        return None
    try:
        packets = video.packets_from(max(start, int(start + video.duration - 2 / video.unit)))
    except av.FFmpegError:
        return None
    ends = _end(video, [(p.pts, p.dts, p.duration) for p in packets if p.pts is not None and not p.is_discard], step)
    return None if ends is None else ends - start


def _end(video: VideoFile, packets: Sequence[tuple[int, int | None, int | None]], step: Fraction) -> int | None:
    """When the last of some frames ends, from their packets' times (shown and decoded) and durations.

    Packet durations of an MP4 follow decoding order. If frames are shown in another order, the last one shown may carry
    another frame's duration, but together the durations are the clip's length.
    """
    if not packets:
        return None
    if video.has_decoding_durations:
        packets = _lasting(video, packets)
    last, _, duration = max(packets, key=lambda packet: packet[0])
    if video.has_decoding_durations:
        decoded = max(((dts or 0) + (lasts or 0) for _, dts, lasts in packets), default=0)
        if decoded > last:
            return decoded
    return last + (duration or max(1, round(step)))


def _lasting(video: VideoFile, packets: Sequence[tuple[int, int | None, int | None]]) -> Sequence:
    """An MP4's packets with durations computed from their decoding times; PyAV 15 does not give the durations."""
    ordered = sorted(packets, key=lambda packet: packet[0] if packet[1] is None else packet[1])
    shown, decoded, own = ordered[-1]
    rest = None if decoded is None else (video.stream.start_time or 0) + (video.stream.duration or 0) - decoded
    timed_packets = [(shown, decoded, own or (rest if rest and rest > 0 else None))]
    for (shown, decoded, own), (_, following, _) in itertools.pairwise(ordered):
        timed_packets.append((shown, decoded, own if decoded is None or following is None else following - decoded))
    return timed_packets


def _scanned_grid(video: VideoFile) -> Grid:
    """The grid from all packets, which are read, not decoded. A frame that is cut short counts, but is never shown."""
    packets = (packet for packet in video.packets() if packet.size and not packet.is_discard)
    timestamps = [(packet.pts, packet.dts, packet.duration) for packet in packets]
    timed = [(shown, decoded, lasts) for shown, decoded, lasts in timestamps if shown is not None]
    if len(timed) < len(timestamps):  # MPEG-PS may state times for some packets only
        video.numbered = True
    if video.numbered:
        video.clock = _clock(video, [decoded for _, decoded, _ in timestamps])
        times = list(video.clock) or list(range(len(timestamps)))
    else:
        times = sorted({time for time, _, _ in timed})
    if not times:
        raise BadSampleError("empty", f"{video.name} holds no frame")
    counted = video.numbered and not video.clock
    unit = 1 / (video.rate or Fraction(1)) if counted else video.unit
    stated = 1 / ((video.rate or 1) * unit)
    step = Fraction(times[-1] - times[0], max(1, len(times) - 1)) or stated
    if abs(step - stated) * len(times) <= _ROUNDING:
        step = stated
    if video.clock:
        end = times[-1] + max(1, round(step))
        header = video.stream.duration or 0  # may count more than the file still holds
        end = header if times[-1] < header < end + step / 2 else end
    else:
        end = times[-1] + 1 if counted else _end(video, timed, step) or 0
    length = _unrounded(end - times[0], len(times), step)
    return Grid(times[0], len(times), step, unit, length, tuple(times))


def _clock(video: VideoFile, decoded: Sequence[int | None]) -> tuple[int, ...]:
    """When each frame of an AVI file is shown, from the places of its chunks; empty in other formats.

    Each chunk has its place in time, and frames that were left out have empty ones. The frame shown first is not
    decoded later than the others, so the order of the places is that of the frames.
    """
    times = [time for time in decoded if time is not None]
    rising = all(one < other for one, other in itertools.pairwise(times))
    if not video.has_places or not rising or len(times) < len(decoded):
        return ()
    apart = [other - one for one, other in itertools.pairwise(times)]
    if apart:  # an encoder that is late by a few frames writes as many empty chunks after the first frame
        usual = sorted(apart)[len(apart) // 2]
        late = apart[0] - usual
        times[0] += late if 0 < late <= _MAX_LATE * usual else 0
    return tuple(times)


def _unrounded(length: int, total: int, step: Fraction) -> Fraction:
    """The exact length of equally spaced frames, which the container's clock rounds to whole ticks."""
    return total * step if abs(total * step - length) <= _ROUNDING else Fraction(length)
