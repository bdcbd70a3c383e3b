"""Decodes a video in time order, and seeks where that saves decoding. Frames are the same as without seeking."""

import bisect
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from typing import NamedTuple

import av

from vlvm_jax.data.faults import BadSampleError
from vlvm_jax.data.media.pyav import ArgumentError
from vlvm_jax.data.media.video_file import VideoFile

MAX_WORK = 2**35  # pixels decoded for one clip: some 100 s on a core, 20 minutes of 720p that has no keyframes


class Picture(NamedTuple):
    """A decoded frame, and since when it is shown."""

    time: int
    frame: av.VideoFrame


class Cursor:
    """Goes through a video once, in time order.

    Between the frames wanted, those from which no other is predicted are not decoded (H.264 tells which). When one of
    these turns out to be wanted, since frames are further apart there, nothing is skipped any more.

    Args:
      wanted: all times that will be asked for, sorted.
      start: time of the first frame.
      step: from one frame to the next, in the mean.

    Attributes:
      ended: the clip has no frames after those decoded.
      damaged: part of the clip did not decode; see `pictures`.
    """

    def __init__(self, video: VideoFile, wanted: Sequence[int], start: int, step: Fraction):
        self._video, self._wanted, self._start, self._step = video, wanted, start, step
        self._skips = video.seeks and video.codec.name == "h264"
        self._near = math.floor(2 * step)
        self._gap = 0  # some keyframes are at least so far apart
        self._work = 0
        self.ended = False
        self._current: Picture | None = None
        self._next: Picture | None = None
        self._frames: Iterator[Picture] = iter(())
        self._begun = self._false_key = False
        self._skips_damage = False
        self.damaged = False
        self._fed = start  # the latest time of which the decoder has the packet

    def shown_at(self, target: int) -> Picture | None:
        """The frame shown at a time: before the first frame that one, after the last the last; None if none decodes.

        Raises:
          BadSampleError: `too_slow` or `too_large`.
          av.FFmpegError: the file is damaged there.
        """
        if self._jump_pays(target):
            self._jump(target)
        elif not self._begun:
            self._begin(self._video.packets(), None)
        while not self._decode_to(target):
            # Either a needed frame was skipped, or decoding cannot begin at this keyframe.
            self._jump(target if self._current or self._keyframe is None else self._keyframe - 1)
        return self._current or self._next

    def pictures(self) -> Iterator[Picture]:
        """Yields every frame that decodes, in order, however long the clip is. Use it instead of `shown_at`.

        After a damaged packet, frames are left out until the next keyframe, and `damaged` is True.
        """
        self._skips, self._skips_damage = False, True
        self._begin(self._video.packets(), None)
        yield from self._frames

    def close(self) -> None:
        """Lets go of frames and packets, which would otherwise wait for the garbage collector."""
        self._current = self._next = None
        self._frames = iter(())

    def _decode_to(self, target: int) -> bool:
        """Decodes to the frame shown at a time; False if that must begin further back."""
        while self._next is None or self._next.time <= target:
            self._current = self._next or self._current
            self._next = next(self._frames, None)
            if self._next is None:
                self.ended = True
                break
        if self._false_key:
            return False
        if self._current is None:
            return self._keyframe is None
        if any(self._current.time < time <= target for time in self._skipped):
            self._skips = False
            return False
        self._skipped = [time for time in self._skipped if time > target]
        return True

    def _jump_pays(self, target: int) -> bool:
        """Whether a keyframe lies between what is decoded and what is wanted."""
        if not self._video.seeks:
            return False
        keyframe = self._video.keyframe(target, self._step)
        return keyframe > self._fed if keyframe is not None else target - self._fed > self._gap

    def _jump(self, target: int) -> None:
        """To the last keyframe shown no later than a time; to the start where none is found."""
        back = 0
        while self._video.seeks and target - back > self._start:
            try:
                packets = self._video.packets_from(self._video.decoded_at(target - back, self._step))
            except av.FFmpegError:
                break
            packets = itertools.dropwhile(lambda packet: not packet.is_keyframe, packets)
            first = next(packets, None)
            if first is not None and first.pts is not None and first.pts <= target:
                self._gap = max(self._gap, target - first.pts)
                self._begin(itertools.chain([first], packets), first.pts)
                return
            back = max(2 * back, math.ceil(1 / self._video.unit))
        self._begin(self._video.packets(), None)

    def _begin(self, packets: Iterable[av.Packet], keyframe: int | None) -> None:
        self._keyframe, self._fed = keyframe, self._start if keyframe is None else keyframe
        self._skipped: list[int] = []
        self._current = self._next = None
        self.ended, self._begun, self._false_key = False, True, False
        self._frames = self._decoded(packets)

    def _decoded(self, packets: Iterable[av.Packet]) -> Iterator[Picture]:
        """Decodes packets. Frames shown before the keyframe at which decoding began are dropped: they lack references.

        If that keyframe does not decode to a key frame, the file marks its keyframes wrongly, as an AVI file without
        its index does. Then this yields nothing, and from now on the file is decoded from its start.
        """
        time, first = self._start - 1, True
        for number, frame in enumerate(self._frames_of(iter(packets))):
            if self._video.numbered:
                time = self._video.numbered_time(number)
            else:
                time = frame.pts if frame.pts is not None else time + max(1, round(self._step))
            if self._keyframe is None or time >= self._keyframe:
                if first and self._keyframe is not None and not frame.key_frame:
                    self._video.in_order = self._false_key = True
                    return
                first = False
                yield Picture(time, frame)

    def _frames_of(self, packets: Iterator[av.Packet]) -> Iterator[av.VideoFrame]:
        stream, lost = self._video.stream, False
        for packet in self._readable(packets):
            if self._video.is_cut(packet):
                break
            if not packet.size:  # an empty one would end the decoding
                continue
            self._weigh(packet)
            try:
                frames = stream.decode(packet)
            except MemoryError:
                raise
            except av.FFmpegError as error:  # decoders give damage many numbers beside that of invalid data
                if self._skips_damage:
                    self.damaged = lost = True
                    continue
                if isinstance(error, ArgumentError):  # that is what decoders say of sizes that are not allowed
                    detail = f"{self._video.name} has frames of a forbidden size"
                    raise BadSampleError("too_large", detail) from None
                if any(later.size for later in packets):
                    raise
                break  # the last packet, cut short
            for frame in frames:
                lost = lost and not frame.key_frame
                if not lost:
                    yield frame
        yield from () if lost else self._rest()

    def _rest(self) -> Sequence[av.VideoFrame]:
        """The frames that the decoder still holds at the clip's end."""
        try:
            return self._video.stream.decode(None)
        except MemoryError:
            raise
        except av.FFmpegError:
            if not self._skips_damage:
                raise
            self.damaged = True
            return ()

    def _readable(self, packets: Iterator[av.Packet]) -> Iterator[av.Packet]:
        """The packets; if damage may be skipped, those before the container is damaged."""
        try:
            yield from packets
        except av.FFmpegError:
            if not self._skips_damage:
                raise
            self.damaged = True

    def _weigh(self, packet: av.Packet) -> None:
        """Before a packet is decoded: whether it must be, and whether it is not too much."""
        codec, time = self._video.codec, packet.pts
        self._work += max(codec.width * codec.height, 2**12)
        if self._work > MAX_WORK and not self._skips_damage:
            raise BadSampleError("too_slow", f"{self._video.name}: frames too far from any keyframe")
        if time is not None:
            if packet.is_keyframe:
                self._gap = max(self._gap, time - self._fed)
            self._fed = max(self._fed, time)
        if codec.name == "h264":
            codec.skip_frame = "DEFAULT"
            if self._skips and time is not None and not self._is_near(time):
                codec.skip_frame = "NONREF"
                self._skipped.append(time)

    def _is_near(self, time: int) -> bool:
        """Whether the frame of a time may be the one shown at a wanted time."""
        after = bisect.bisect_left(self._wanted, time)
        return after < len(self._wanted) and self._wanted[after] - time <= self._near
