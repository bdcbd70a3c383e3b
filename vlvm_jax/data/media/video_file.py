"""Opens video files with PyAV and reads their video packets, from the start or from a keyframe."""

import contextlib
import os
from collections.abc import Iterator
from fractions import Fraction
from typing import Any, BinaryIO, cast

import av
from av.container import InputContainer
from av.stream import Disposition
from av.video.stream import VideoStream

from vlvm_jax.data.faults import BadSampleError, plain
from vlvm_jax.data.media import animation, pyav
from vlvm_jax.data.media.pixels import MAX_PIXELS
from vlvm_jax.errors import InputError, Interrupted, brief

_INDEXED = ("mov", "matroska", "avi")
_SEEKABLE = (*_INDEXED, "mpegts")
_LATE_STREAMS = ("mpegts", "mpeg", "flv")  # formats whose header does not list the streams
# By how many seconds a time may precede and follow the expected one. Beyond that, times have restarted: a file in one
# of the first two formats was appended to another, or FLV's millisecond counter overflowed.
_RESTARTS = {"mpegts": (0.1, 10), "mpeg": (0.1, 10), "flv": (108_000, 108_000)}
_WHOLE = 2**31 - 1  # bytes and microseconds to search for streams
_SMALL = 2**21  # bytes; smaller files are read in full instead of being sampled
_PROBE = 2**17  # bytes
_CONSTANT = 1e-3  # relative difference up to which two stated rates count as equal


@contextlib.contextmanager
def open_video(file: BinaryIO, name: str) -> Iterator["VideoFile"]:
    """Opens a video; `name` is for messages.

    Raises, also for what goes wrong within the context:
      BadSampleError: `no_video`, `corrupt`, `too_large` or `too_slow`.
      StorageError, InputError: as the file raises it.
    """
    reader = _Reader(animation.as_clip(file, name))
    try:
        try:
            with contextlib.closing(VideoFile(reader, name)) as video:
                yield video
        finally:
            reader.check()
    except av.FFmpegError as error:  # FFmpeg's ENOMEM too: a damaged file may ask for any amount
        if not reader.seek(0, os.SEEK_END):
            raise BadSampleError("empty", f"{name} (0 bytes)") from None
        raise BadSampleError("corrupt", f"{name} ({plain(error)})") from None
    except (BadSampleError, InputError, Interrupted, MemoryError):  # refused access, failing storage, and no memory
        raise
    except Exception as error:  # PyAV raises whatever its code meets
        raise BadSampleError("corrupt", f"{name} ({type(error).__name__}: {brief(error)})") from None


class _Reader:
    """A file as FFmpeg reads it. FFmpeg hides or garbles exceptions: an error ends the file, and `check` raises it."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self._fault: Exception | None = None

    def read(self, size: int) -> bytes:
        try:
            return b"" if self._fault else self._file.read(size)
        except Exception as error:
            self._fault = error
            return b""

    def seek(self, offset: int, whence: int = 0) -> int:
        try:
            return self._file.seek(offset, whence)
        except ValueError:  # before the start, which broken files ask for
            return -1
        except OSError as error:
            self._fault = self._fault or (None if self._file.seekable() else error)
            return -1

    def tell(self) -> int:
        return self._file.tell()

    def check(self) -> None:
        """Raises the error that reading met, if any."""
        if self._fault is not None:
            raise self._fault


class VideoFile:
    """The first video stream of a file that is not cover art. Build it with `open_video`.

    Attributes:
      container, stream, codec: PyAV's.
      unit: seconds per tick of the stream's times.
      numbered: the file states no usable times; the time of a frame is its number, or `clock` at its number.
      clock: times of a numbered file's frames, in the order in which they are shown; empty where unknown.
      in_order: the file must be decoded from its start, since its key frames are not real ones or its times restart.
    """

    container: InputContainer
    stream: VideoStream
    codec: Any

    def __init__(self, reader: _Reader, name: str):
        self.name, self._reader, self._moved = name, reader, False
        self._open()
        self.unit = pyav.fraction(self.stream.time_base) or Fraction(1)
        self._format = self.container.format.name.partition(",")[0]
        # AVI states no times, and FFmpeg guesses them wrong where frames are not shown in the order of decoding.
        self.numbered = self._format == "avi" and bool(self.codec.has_b_frames)
        self.clock: tuple[int, ...] = ()
        self.in_order = False

    def close(self) -> None:
        self.container.close()

    def _open(self) -> None:
        streams = self._streams()
        if not streams and self.container.format.name.partition(",")[0] in _LATE_STREAMS:
            self.container.close()
            streams = self._streams(probesize=str(_WHOLE), analyzeduration=str(_WHOLE))
        if not streams:
            cause = "no_video" if self.container.streams.audio else "corrupt"
            raise BadSampleError(cause, f"{self.name} has no video stream")
        self.stream = streams[0]
        self.codec = self.stream.codec_context
        if self.codec is None:
            raise BadSampleError("corrupt", f"{self.name} has a video stream that nothing here decodes")
        if self.codec.width * self.codec.height > MAX_PIXELS:
            size = f"{self.codec.width} x {self.codec.height}"
            raise BadSampleError("too_large", f"{self.name} has frames of {size} pixels")
        self.codec.thread_count = 1  # workers are the parallelism
        self.codec.options = {"max_pixels": str(MAX_PIXELS)}
        for other in self.container.streams:
            if other is not self.stream:
                pyav.discard(other)

    def _streams(self, **options: str) -> list[VideoStream]:
        """Opens the container and returns its video streams, except cover art."""
        self._reader.seek(0)
        # A playlist must not have other files opened.
        options |= {"max_pixels": str(MAX_PIXELS), "protocol_whitelist": "none"}
        self.container = pyav.open_input(cast(BinaryIO, self._reader), options)
        return [s for s in self.container.streams.video if not s.disposition & Disposition.attached_pic]

    # --- what the header says ------------------------------------------------------------------------------------

    @property
    def seeks(self) -> bool:
        """Whether seeking works and times are true, as in MP4, MOV, Matroska, WebM, MPEG-TS and most AVI files."""
        return self._format in _SEEKABLE and not self.numbered and not self.in_order

    @property
    def has_places(self) -> bool:
        """Whether a packet's decoding time is its place among chunks that are equally far apart (AVI)."""
        return self._format == "avi"

    @property
    def start(self) -> int | None:
        """Time of the first frame. AVI's header says 0, but FFmpeg may count the frames of H.264 from 1."""
        if self._format == "avi":
            with contextlib.suppress(av.FFmpegError):
                first = next(self.packets(), None)
                if first is not None and first.pts is not None:
                    return first.pts
        return self.stream.start_time

    @property
    def has_decoding_durations(self) -> bool:
        """Whether packet durations follow decoding order (MP4 and MOV)."""
        return self._format == "mov"

    @property
    def reorders(self) -> bool:
        """Whether frames may be decoded in a different order from that in which they are shown."""
        return bool(self.codec.has_b_frames)

    @property
    def rate(self) -> Fraction | None:
        """Frames per second."""
        return pyav.fraction(self.stream.average_rate) or pyav.fraction(self.stream.guessed_rate)

    @property
    def is_constant(self) -> bool:
        """Whether the header says that frames are about equally far apart."""
        mean, finest = (pyav.fraction(rate) for rate in (self.stream.average_rate, self.stream.guessed_rate))
        return mean is not None and finest is not None and abs(mean / finest - 1) < _CONSTANT

    @property
    def pixel_aspect(self) -> Fraction:
        """Width / height of a stored pixel, from the container or else the first frame; 0 if neither states it."""
        return pyav.fraction(self.stream.sample_aspect_ratio) or Fraction(0)

    @property
    def duration(self) -> Fraction | None:
        """Duration of the file, sound included, in the stream's units."""
        return None if self.container.duration is None else self.container.duration / (av.time_base * self.unit)

    def keyframe(self, time: int, step: Fraction) -> int | None:
        """About when the last keyframe no later than a time is shown, by the file's index; None where it has none.

        Args:
          step: from one frame to the next.
        """
        index = pyav.index_of(self.stream)
        if self._format not in _INDEXED or not len(index):
            return None
        entry = cast(Any, index).search_timestamp(self.decoded_at(time, step), backward=True)
        return index[max(0, entry)].timestamp

    def decoded_at(self, time: int, step: Fraction) -> int:
        """The time to seek by for a frame shown at `time`: MP4 files go by when frames are decoded."""
        ahead = pyav.reorder_depth(self.codec) * step if self._format == "mov" else 0
        return int(time - ahead)

    # --- packets -------------------------------------------------------------------------------------------------

    def packets_from(self, time: int) -> Iterator[av.Packet]:
        """Packets from a keyframe before a time on, or, in a format without index, from anywhere before it.

        Raises:
          av.FFmpegError: there is no seeking there.
        """
        self._moved = True
        self.container.seek(time, stream=self.stream)
        return self._demuxed()

    def packets(self) -> Iterator[av.Packet]:
        """All packets, from the start."""
        index = pyav.index_of(self.stream)
        if self._moved and self._format in _INDEXED and len(index):
            with contextlib.suppress(av.FFmpegError):
                return self.packets_from(index[0].timestamp)
        if self._moved:
            self.container.close()
            self._open()
        self._moved = True
        if self._format in _RESTARTS and not self.seeks:
            return _continuous(self._demuxed(), *(limit / self.unit for limit in _RESTARTS[self._format]))
        return self._demuxed()

    def _demuxed(self) -> Iterator[av.Packet]:
        try:
            yield from self.container.demux(self.stream)
        except IndexError:
            # PyAV below 19 may end like this if a stream appeared after opening. By then it has given all packets.
            if self._format not in _LATE_STREAMS:
                raise

    @property
    def is_small(self) -> bool:
        """Whether reading all packets is quick."""
        return self._size() <= _SMALL

    def _size(self) -> int:
        """Bytes of the file."""
        place = self._reader.tell()
        size = self._reader.seek(0, 2)
        self._reader.seek(place)
        return size

    def restarts(self) -> bool:
        """Whether times restart within the file, as when one MPEG-TS file was appended to another.

        A small file is read in full. A larger one is sampled at 3/4, 1/2, 3/8, 1/4, 3/16, ... of its size and at its
        end. If the bit rate is about constant, the first sample after a restart has an earlier time than the last one
        before it.

        Raises:
          av.FFmpegError: the file is damaged.
        """
        if self._format != "mpegts":
            return False
        back, latest = _RESTARTS[self._format][0] / self.unit, None
        size = self._size()
        if self.is_small:
            times = (packet.dts for packet in self.packets())
        else:
            places = [part * size >> power for power in range(2, size.bit_length()) for part in (2, 3)]
            times = map(self._time_near, sorted(place for place in (*places, size - _PROBE) if place >= _PROBE))
        for time in times:
            if time is None:
                continue
            if latest is not None and time < latest - back:
                return True
            latest = time
        end = (
            None if self.duration is None or self.stream.start_time is None else self.stream.start_time + self.duration
        )
        return latest is not None and end is not None and end < latest - back

    def _time_near(self, place: int) -> int | None:
        """When the first frame after a byte of the file is decoded."""
        self._moved = True
        self.container.seek(place, unsupported_byte_offset=True, stream=self.stream)
        return next((packet.dts for packet in self._demuxed() if packet.dts is not None), None)

    def numbered_time(self, number: int) -> int:
        """Time of a numbered file's frame; a decoder may give more frames than there are packets."""
        if not self.clock:
            return number
        return self.clock[number] if number < len(self.clock) else self.clock[-1] + 1 + number - len(self.clock)

    def is_cut(self, packet: av.Packet) -> bool:
        """Whether the file ends within a packet."""
        return packet.is_corrupt and self._format != "mpegts"


def _continuous(packets: Iterator[av.Packet], before: float, after: float) -> Iterator[av.Packet]:
    """Makes packets' times continue where they restart, as the `ffmpeg` command does.

    Args:
      before, after: by how much a packet's time may precede and follow the expected one, in the packets' units.
    """
    shift, expected = 0, None
    for packet in packets:
        if packet.dts is not None:
            if expected is not None and not -before <= packet.dts + shift - expected <= after:
                shift = expected - packet.dts
            expected = packet.dts + shift + (packet.duration or 0)
            packet.dts += shift
        if packet.pts is not None:
            packet.pts += shift
        yield packet
