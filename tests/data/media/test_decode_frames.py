"""Frames by seeking are the very frames that decoding everything gives, whatever the file."""

import gc
import struct
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image
from support.media_files import decode_all, moving, remux, write_clip, write_sound

from vlvm_jax.data.faults import BadSampleError
from vlvm_jax.data.media import decode, frames, video_file
from vlvm_jax.data.media.containers import open_medium
from vlvm_jax.data.media.cursor import Cursor
from vlvm_jax.data.media.frame_rules import uniform_indices
from vlvm_jax.data.media.frames import decode_clip
from vlvm_jax.data.media.video_file import VideoFile
from vlvm_jax.storage import StorageError

SIZE = (64, 48)
OPEN_GOP = {"x264-params": "open-gop=1:keyint=12:bframes=3"}
REFRESH = {"x264-params": "intra-refresh=1:keyint=15"}
PYRAMID = {"x264-params": "keyint=24:bframes=6:b-pyramid=normal:ref=4:scenecut=0"}
FAST_START, FRAGMENTS = {"movflags": "faststart"}, {"movflags": "frag_keyframe+empty_moov"}
HIDDEN = {"auto-alt-ref": "1", "lag-in-frames": "10"}

FILES = {
    "mp4": ("c.mp4", {"gop": 12}),
    "mp4 without B-frames": ("c.mp4", {"gop": 12, "b_frames": 0}),
    "mp4 with sound": ("c.mp4", {"gop": 12, "sound": True}),
    "mp4 of one keyframe": ("c.mp4", {"gop": 1000}),
    "mp4 of keyframes only": ("c.mp4", {"gop": 1}),
    "mp4 with frames that refer far": ("c.mp4", {"codec_options": PYRAMID}),
    "mp4 with open groups": ("c.mp4", {"codec_options": OPEN_GOP}),
    "mp4 without keyframes": ("c.mp4", {"codec_options": REFRESH}),
    "mp4 in fragments": ("c.mp4", {"gop": 12, "options": FRAGMENTS}),
    "mp4 of 29.97 a second": ("c.mp4", {"gop": 12, "fps": Fraction(30000, 1001)}),
    "mp4, interlaced": ("c.mp4", {"codec_options": {"x264-params": "tff=1:keyint=12"}}),
    "mp4, 10 bit": ("c.mp4", {"gop": 12, "pix_fmt": "yuv420p10le"}),
    "hevc": ("c.mp4", {"codec": "libx265", "codec_options": {"x265-params": "keyint=12:log-level=none"}}),
    "hevc with open groups": (
        "c.mp4",
        {"codec": "libx265", "codec_options": {"x265-params": "keyint=12:open-gop=1:log-level=none"}},
    ),
    "av1": ("c.mp4", {"codec": "libsvtav1", "gop": 12, "codec_options": {"preset": "12"}}),
    "mpeg4": ("c.mp4", {"codec": "mpeg4", "gop": 12, "b_frames": 2}),
    "alpha": ("c.mov", {"codec": "qtrle", "pix_fmt": "argb"}),
    "mkv": ("c.mkv", {"gop": 12, "b_frames": 2}),
    "mkv of 29.97 a second": ("c.mkv", {"gop": 12, "fps": Fraction(30000, 1001)}),
    "mkv as from a camera": ("c.mkv", {"gop": 12, "b_frames": 2, "options": {"live": "1"}}),
    "webm, vp8": ("c.webm", {"codec": "libvpx", "gop": 12}),
    "webm, vp8 with hidden frames": ("c.webm", {"codec": "libvpx", "gop": 30, "codec_options": HIDDEN}),
    "webm, vp9": ("c.webm", {"codec": "libvpx-vp9", "gop": 12}),
    "webm as from a browser": ("c.webm", {"codec": "libvpx", "gop": 12, "options": {"live": "1"}}),
    "avi, mpeg4": ("c.avi", {"codec": "mpeg4", "gop": 12}),
    "avi, mpeg4 with B-frames": ("c.avi", {"codec": "mpeg4", "gop": 12, "b_frames": 2}),
    "avi, h264 with B-frames": ("c.avi", {"gop": 12}),
    "avi, mjpeg": ("c.avi", {"codec": "mjpeg", "pix_fmt": "yuvj420p"}),
    "ts": ("c.ts", {"gop": 12}),
    "ts with sound": ("c.ts", {"gop": 12, "sound": True}),
    "ts with open groups": ("c.ts", {"codec_options": OPEN_GOP}),
    "ts without keyframes": ("c.ts", {"codec_options": REFRESH}),
    "ts, mpeg2": ("c.ts", {"codec": "mpeg2video", "fps": 25, "gop": 12, "b_frames": 2}),
    "mpg": ("c.mpg", {"codec": "mpeg2video", "fps": 25, "gop": 12, "b_frames": 2, "form": "vob"}),
    "flv": ("c.flv", {"gop": 12}),
    "wmv": ("c.wmv", {"codec": "wmv2", "gop": 12, "form": "asf"}),
    "gif": ("c.gif", {"codec": "gif", "pix_fmt": "rgb8"}),
    "h264 without container": ("c.h264", {"gop": 12}),
}


@pytest.fixture(autouse=True)
def sought(monkeypatch):
    """All files are searched as large ones are, of which not all packets are read."""
    monkeypatch.setattr(video_file, "_SMALL", 0)


@pytest.fixture(scope="module", params=FILES)
def file(request, tmp_path_factory):
    """A clip of 70 frames, and all of it decoded."""
    name, how = FILES[request.param]
    path = write_clip(tmp_path_factory.mktemp("clip") / name, moving(70, SIZE), **how)
    return path, *decode_all(path)


def take(path, chosen):
    with open_medium(path) as opened:
        return decode.take_frames(opened, path, lambda total, fps: chosen, lambda pixels: pixels, at_most=0)


def same(found, expected):
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8, 16, 69, 70, 200])
def test_uniform_frames_are_those_of_decoding_everything(file, count):
    path, times, pixels = file
    clip = decode_clip(path, count, lambda pixels: pixels)
    chosen = uniform_indices(len(pixels), count)
    same(clip.frames, [pixels[i] for i in chosen])
    if times is not None:  # FFmpeg makes up those of AVI
        assert clip.times == pytest.approx([i * clip.duration / 70 for i in chosen], abs=2e-3)
        if not path.endswith("avi"):
            assert clip.times == pytest.approx([times[i] for i in chosen], abs=2e-3)


def test_any_frames_are_those_of_decoding_everything(file):
    path, _, pixels = file
    rng = np.random.default_rng(0)
    for _ in range(6):
        chosen = sorted(rng.choice(70, rng.integers(1, 9), replace=False).tolist())
        same(take(path, chosen).frames, [pixels[i] for i in chosen])
    same(take(path, [69]).frames, [pixels[69]])


def test_part_of_a_clip_is_a_clip(file):
    path, _, pixels = file
    duration = decode_clip(path, 1, lambda pixels: pixels).duration
    rate = 70 / duration
    clip = decode_clip(path, 6, lambda pixels: pixels, span=(20 / rate, 50 / rate))
    chosen = uniform_indices(30, 6)
    same(clip.frames, [pixels[20 + i] for i in chosen])
    assert clip.times == pytest.approx([i / rate for i in chosen], abs=2e-3)
    assert clip.duration == pytest.approx(30 / rate)


# --- times -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["c.mp4", "c.mkv", "c.ts"])
@pytest.mark.parametrize("longest", [3, 40])
def test_frames_of_unlike_length_are_chosen_by_when_they_are_shown(tmp_path, name, longest):
    ticks = np.cumsum(np.random.default_rng(longest).integers(1, longest, 60)).tolist()
    path = write_clip(tmp_path / name, moving(60, SIZE), fps=30, gop=24, b_frames=3, times=ticks)
    times, pixels = decode_all(path)
    assert len(set(np.diff(np.round(times, 2)))) > 1
    clip = decode_clip(path, 9, lambda pixels: pixels)
    assert times[-1] <= clip.duration < times[-1] + longest / 30 + 0.1
    spoken = [times.index(pytest.approx(time, abs=2e-3)) for time in clip.times]
    same(clip.frames, [pixels[i] for i in spoken])
    step = clip.duration / 60
    found = set()
    for part in range(9):
        middle = (part + 0.5) * clip.duration / 9
        near = {int(np.searchsorted(times, middle + shift * step, "right")) - 1 for shift in (-1, -0.5, 0, 0.5, 1)}
        assert near & set(spoken)
        found |= near & set(spoken)
    assert found == set(spoken)


@pytest.mark.parametrize("held", range(18, 22))
def test_a_frame_that_is_held_for_long_is_shown_whatever_its_kind(tmp_path, held):
    """B-frames far from any wanted time are not decoded at first: one of them is still on screen at second 1."""
    ticks = [number + 30 * (number > held) for number in range(60)]
    path = write_clip(tmp_path / "c.mp4", moving(60, SIZE), fps=30, gop=24, b_frames=3, times=ticks)
    clip = decode_clip(path, 9, lambda pixels: pixels, rule="fps", fps=1)
    same(clip.frames, [decode_all(path)[1][number] for number in (0, held, 30)])


def test_each_frame_of_a_short_clip_however_short_it_is_shown(tmp_path):
    path = write_clip(tmp_path / "c.mp4", moving(6, SIZE), fps=30, times=[0, 1, 2, 60, 61, 200])
    clip = decode_clip(path, 8, lambda pixels: pixels)
    assert clip.times == pytest.approx([0, 1 / 30, 2 / 30, 2, 61 / 30, 200 / 30], abs=2e-3)
    same(clip.frames, decode_all(path)[1])


def shifted(ticks):
    def change(packet):
        packet.pts, packet.dts = packet.pts + ticks, packet.dts + ticks
        return True

    return change


@pytest.mark.parametrize("name", ["c.mp4", "c.mkv", "c.ts"])
def test_a_clip_that_starts_late_has_its_times_from_its_own_start(tmp_path, name):
    source = write_clip(tmp_path / "source.mp4", moving(60, SIZE), gop=12, b_frames=2)
    path = remux(source, tmp_path / name, shifted(50 * 1024))
    clip = decode_clip(path, 6, lambda pixels: pixels)
    same(clip.frames, [decode_all(source)[1][i] for i in uniform_indices(60, 6)])
    assert clip.times == pytest.approx([i / 10 for i in uniform_indices(60, 6)])
    assert clip.duration == pytest.approx(6)


def test_an_edit_list_cuts_the_clip(tmp_path):
    source = write_clip(tmp_path / "source.mp4", moving(60, SIZE), gop=12, b_frames=2)
    path = remux(source, tmp_path / "cut.mp4", shifted(-15 * 1024))
    pixels = decode_all(source)[1][15:]
    same(decode_all(path)[1], pixels)
    for count in (4, 10, 50):
        clip = decode_clip(path, count, lambda pixels: pixels)
        same(clip.frames, [pixels[i] for i in uniform_indices(45, count)])
        assert clip.times[0] == pytest.approx(uniform_indices(45, count)[0] / 10)


# --- headers that lie, files that are cut ------------------------------------------------------------------------


def patched(path, mark, offset, content):
    data = bytearray(path.read_bytes())
    at = data.index(mark) + offset
    data[at : at + len(content)] = content
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("stated", [100.0, 1500.0, 750_000.0, 1e12])
def test_a_matroska_header_that_lies_about_the_duration(tmp_path, stated):
    path = tmp_path / "c.mkv"
    write_clip(path, moving(60, SIZE), gop=12)
    patched(path, b"\x44\x89\x88", 3, struct.pack(">d", stated))
    clip = decode_clip(str(path), 7, lambda pixels: pixels)
    same(clip.frames, [decode_all(path)[1][i] for i in uniform_indices(60, 7)])
    assert clip.duration == pytest.approx(6)


@pytest.mark.parametrize("stated", [1, 2**31 - 1])
def test_an_mp4_header_that_lies_about_the_duration(tmp_path, stated):
    path = tmp_path / "c.mp4"
    write_clip(path, moving(60, SIZE), gop=12, b_frames=0)
    for mark, offset in ((b"mvhd", 20), (b"tkhd", 24), (b"mdhd", 20)):
        patched(path, mark, offset, struct.pack(">I", stated))
    pixels = decode_all(path)[1]
    clip = decode_clip(str(path), 7, lambda pixels: pixels)
    same(clip.frames, [pixels[i] for i in uniform_indices(len(pixels), 7)])


CUT = {
    "c.mp4": {"gop": 12, "options": FAST_START},
    "c.mkv": {"gop": 12},
    "c.avi": {"codec": "mpeg4", "gop": 12},
    "c.webm": {"codec": "libvpx-vp9", "gop": 12},
    "c.ts": {"gop": 12},
    "c.gif": {"codec": "gif", "pix_fmt": "rgb8"},
}


@pytest.mark.parametrize("whole", [20, 35, 50, 66])
@pytest.mark.parametrize("name", CUT)
def test_of_a_cut_file_frames_are_chosen_among_what_decodes(tmp_path, name, whole):
    path = tmp_path / name
    write_clip(path, moving(70, SIZE), **CUT[name])
    times, pixels = decode_all(path)
    with av.open(str(path)) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    place, size = packets[whole]
    path.write_bytes(path.read_bytes()[: place + size // 2])
    clip = decode_clip(str(path), 6, lambda pixels: pixels)
    rate = 70 / (times[-1] * 70 / 69)
    assert clip.duration == pytest.approx(whole / rate, abs=5 / rate)  # frames wait for others, in packets too
    assert len(clip.frames) == 6 and list(clip.times) == sorted(set(clip.times))
    assert clip.times[0] < clip.duration / 6 and clip.times[-1] > clip.duration * 4 / 6
    intact = 5 if name == "c.ts" else 6  # which does not tell that a packet is cut
    for time, frame in list(zip(clip.times, clip.frames, strict=True))[:intact]:
        np.testing.assert_array_equal(frame, pixels[times.index(pytest.approx(time, abs=2e-3))])


# --- cost --------------------------------------------------------------------------------------------------------


class Counting:
    """A file that counts what is read of it."""

    def __init__(self, path):
        self._file, self.bytes = open_medium(path), 0

    def read(self, size):
        data = self._file.read(size)
        self.bytes += len(data)
        return data

    def __getattr__(self, name):
        return getattr(self._file, name)


def noise(total, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.integers(0, 256, (96, 128, 3), dtype=np.uint8) for _ in range(total))


@pytest.mark.parametrize("name", ["c.mp4", "c.mkv", "c.ts"])
def test_a_few_frames_of_a_long_clip_read_a_small_part_of_it(tmp_path, name):
    path = tmp_path / name
    write_clip(path, noise(300), gop=10, codec_options={"preset": "ultrafast", "crf": "12"})
    assert path.stat().st_size > 4_000_000
    file = Counting(str(path))
    taken = decode.take_frames(file, str(path), lambda total, fps: [70, 220], lambda pixels: pixels, at_most=2)
    pixels = decode_all(path)[1]
    same(taken.frames, [pixels[70], pixels[220]])
    assert file.bytes < (0.5 if name == "c.ts" else 0.25) * path.stat().st_size  # TS is searched by halves


def test_frames_far_from_any_keyframe_are_not_worth_a_sample(tmp_path, monkeypatch):
    monkeypatch.setattr("vlvm_jax.data.media.cursor.MAX_WORK", 64 * 64 * 50)
    few, many = (write_clip(tmp_path / f"{gop}.mp4", moving(70, SIZE), gop=gop, b_frames=0) for gop in (5, 1000))
    assert len(decode_clip(few, 8, lambda pixels: pixels).frames) == 8
    with pytest.raises(BadSampleError) as caught:
        decode_clip(many, 8, lambda pixels: pixels)
    assert caught.value.cause == "too_slow"


def test_nothing_of_a_clip_waits_for_the_garbage_collector(tmp_path):
    """Decoded frames are large, and few objects: the collector would come late."""
    path = write_clip(tmp_path / "c.mp4", moving(70, SIZE), gop=12)
    gc.collect()
    gc.disable()
    try:
        assert len(decode_clip(path, 8, lambda pixels: pixels).frames) == 8
        kept = [found for found in gc.get_objects() if isinstance(found, (Cursor, VideoFile))]
    finally:
        gc.enable()
    assert not kept


# --- what a file may bring ---------------------------------------------------------------------------------------


QUARTER = {90: (0, -1, 1, 0), 180: (-1, 0, 0, -1), 270: (0, 1, -1, 0)}


@pytest.mark.parametrize("degrees", QUARTER)
def test_a_turned_clip_stands_upright(tmp_path, degrees):
    """The matrix of a phone held upright, by which players turn pictures."""
    path = tmp_path / "c.mp4"
    write_clip(path, moving(20, SIZE), options=FAST_START)
    pixels = decode_all(path)[1]
    a, b, c, d = (value * 0x10000 for value in QUARTER[degrees])
    patched(path, b"tkhd", 44, struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 0x40000000))
    clip = decode_clip(str(path), 4, lambda pixels: pixels)
    same(clip.frames, [np.rot90(pixels[i], degrees // 90) for i in uniform_indices(20, 4)])
    assert clip.frames.shape[1:3] == ((64, 48) if degrees != 180 else (48, 64))


def test_frames_of_odd_sizes(tmp_path):
    path = write_clip(tmp_path / "c.mp4", moving(20, (65, 49)), gop=6, pix_fmt="yuv444p")
    clip = decode_clip(path, 5, lambda pixels: pixels)
    same(clip.frames, [decode_all(path)[1][i] for i in uniform_indices(20, 5)])


def refused(path, **options):
    with pytest.raises(BadSampleError) as caught:
        decode_clip(str(path), 4, lambda pixels: pixels, **options)
    assert str(path) in caught.value.detail
    return caught.value.cause


def test_a_cover_picture_is_no_video(tmp_path):
    assert refused(write_sound(tmp_path / "sound.mp4")) == "no_video"
    write_clip(tmp_path / "c.mkv", moving(3, SIZE), codec="mjpeg", pix_fmt="yuvj420p")
    with_cover = tmp_path / "song.mp4"
    cover(write_sound(tmp_path / "song.m4a"), tmp_path / "c.mkv", with_cover)
    assert refused(with_cover) == "no_video"


def cover(song, picture, path):
    with av.open(str(song)) as sound, av.open(str(picture)) as still, av.open(str(path), "w") as container:
        audio = container.add_stream_from_template(sound.streams.audio[0])
        image = container.add_stream_from_template(still.streams.video[0])
        image.disposition = av.stream.Disposition.attached_pic.value  # an int to PyAV 15
        for given, stream in ((still, image), (sound, audio)):
            for packet in given.demux(given.streams[0]):
                if packet.size:
                    packet.stream = stream
                    container.mux(packet)
                if given is still:
                    break


@pytest.mark.parametrize("side", [12_000, 65_000])
def test_a_huge_size_is_refused_before_anything_is_allocated(tmp_path, side):
    path = tmp_path / "c.mov"
    write_clip(path, moving(5, SIZE), codec="qtrle", pix_fmt="rgb24")
    patched(path, b"rle ", 28, struct.pack(">HH", side, side))
    assert refused(path) == "too_large"


@pytest.mark.parametrize("text", ["ffconcat version 1.0\nfile c.mp4\n", "#EXTM3U\n#EXTINF:2,\nc.ts\n#EXT-X-ENDLIST\n"])
def test_a_playlist_opens_no_other_file(tmp_path, monkeypatch, text):
    for name in ("c.mp4", "c.ts"):
        write_clip(tmp_path / name, moving(20, SIZE))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "list.mp4").write_text(text)
    assert refused("list.mp4") == "corrupt"


def test_a_span_without_frames(tmp_path):
    path = write_clip(tmp_path / "c.mp4", moving(30, SIZE))
    for span in ((3.0, 9.0), (2.0, 2.0), (2.0, 1.0), (float("nan"), 2.0)):
        assert refused(path, span=span) == "empty"
    assert decode_clip(path, 2, lambda pixels: pixels, span=(-5.0, 1.0)).times == pytest.approx((0.2, 0.7))


# --- faults of the storage ---------------------------------------------------------------------------------------


class Failing:
    """A remote file that stops answering."""

    def __init__(self, path, after):
        self._file, self._left, self.asked = open_medium(path), after, 0

    def read(self, size):
        data = self._file.read(size)
        self._left -= len(data)
        if self._left < 0:
            self.asked += 1
            raise StorageError("storage does not answer")
        return data

    def __getattr__(self, name):
        return getattr(self._file, name)


@pytest.mark.parametrize("name", ["c.mp4", "c.mkv", "c.ts", "c.avi", "c.gif"])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9])
def test_storage_that_fails_is_nobodys_bad_sample(tmp_path, name, share):
    how = {"c.avi": {"codec": "mpeg4"}, "c.gif": {"codec": "gif", "pix_fmt": "rgb8"}}.get(name, {})
    path = tmp_path / name
    write_clip(path, noise(40), gop=10, **how)
    file = Failing(str(path), share * path.stat().st_size)
    with pytest.raises(StorageError, match="storage does not answer"):
        decode.take_frames(file, str(path), lambda total, fps: range(total), lambda pixels: pixels, at_most=4)
    assert file.asked == 1  # each further question would take minutes
    assert len(decode_clip(str(path), 4, lambda pixels: pixels).frames) == 4  # nothing is left behind


# --- clips kept as images ----------------------------------------------------------------------------------------


def test_a_folder_of_frames(tmp_path):
    pixels = list(moving(25, SIZE))
    for number, frame in enumerate(pixels):
        Image.fromarray(frame).save(tmp_path / f"frame{number}.png")
    (tmp_path / "notes.txt").write_text("no frame")
    clip = decode_clip(str(tmp_path), 4, lambda pixels: pixels, folder_fps=2)
    same(clip.frames, [pixels[i] for i in uniform_indices(25, 4)])
    assert clip.times == tuple(i / 2 for i in uniform_indices(25, 4)) and clip.duration == 12.5
    clip = decode_clip(str(tmp_path), 99, lambda pixels: pixels, rule="fps", fps=1, folder_fps=2, span=(2, 7))
    same(clip.frames, pixels[4:14:2])
    assert clip.times == (0, 1, 2, 3, 4) and clip.duration == 5
    (tmp_path / "frame3.png").write_bytes(b"")
    with pytest.raises(BadSampleError) as caught:
        decode_clip(str(tmp_path), 4, lambda pixels: pixels)
    assert caught.value.cause == "corrupt"


def test_the_same_segments_again(tmp_path):
    path = write_clip(tmp_path / "c.mp4", moving(70, SIZE), gop=12)
    one, again, other = (
        decode_clip(path, 6, lambda pixels: pixels, rule="segment", seed=seed) for seed in ((0, 7), (0, 7), (0, 8))
    )
    assert one.times == again.times != other.times
    same(one.frames, again.frames)
    middles = decode_clip(path, 6, lambda pixels: pixels, rule="segment")
    assert middles.times == decode_clip(path, 6, lambda pixels: pixels).times


def test_a_rate_of_a_clip_with_fewer_frames_than_allowed(tmp_path):
    path = write_clip(tmp_path / "c.mp4", moving(30, SIZE))
    clip = decode_clip(path, 32, lambda pixels: pixels, rule="fps", fps=2)
    assert clip.times == (0, 0.5, 1, 1.5, 2, 2.5)
    same(clip.frames, [decode_all(path)[1][i] for i in range(0, 30, 5)])


def test_small_frames_by_the_public_name(tmp_path):
    path = write_clip(tmp_path / "c.webm", moving(30, SIZE), codec="libvpx-vp9")
    assert frames.read_clip(path, 5, 16, span=(1, 2)).shape == (5, 16, 16, 3)
