"""Clips and images made smaller: size, times, key frames, and the same bytes every time."""

import contextlib
import io
import itertools
import re
import subprocess
from pathlib import Path

import av
import imageio_ffmpeg
import numpy as np
import pytest
from av.video.reformatter import ColorRange, Colorspace
from PIL import Image
from support import user_folder
from support.media_files import STEP, decode_all, grey, moving, write_clip

from vlvm_jax.data.embedded.files import write_mp4
from vlvm_jax.data.faults import BadSampleError
from vlvm_jax.data.media import frames as video
from vlvm_jax.data.record import Record, Turn
from vlvm_jax.data.tools import reencode
from vlvm_jax.data.tools.check import Checker
from vlvm_jax.data.tools.record_bytes import record_bytes
from vlvm_jax.data.tools.reencode import GOP, Target

CASES = Path(__file__).parents[1] / "cases"


def made(tmp_path, **kwargs):
    user_folder.clip(tmp_path / "clip.mp4", **kwargs)
    return (tmp_path / "clip.mp4").read_bytes()


def frames(data):
    """Times, key frames and pixels, and the stream's size."""
    with av.open(io.BytesIO(data)) as container:
        assert [stream.type for stream in container.streams] == ["video"]
        stream = container.streams.video[0]
        found = [(frame.time, frame.key_frame, frame.to_ndarray(format="rgb24")) for frame in container.decode(stream)]
        return (*zip(*found, strict=True), (stream.width, stream.height))


def test_smaller_and_slower(tmp_path):
    data = made(tmp_path, frames=48, fps=24, size=(128, 96))
    before, _, pixels, _ = frames(data)
    times, _, smaller, size = frames(reencode.clip(data, Target(48, 6), "clip"))
    assert size == (64, 48)
    assert np.allclose(times, before[::4], atol=1e-4)  # the very times of the frames that are kept
    shrunk = np.stack([np.asarray(Image.fromarray(frame).resize(size)) for frame in pixels[::4]])
    apart = np.abs(shrunk.astype(int)[:, None] - np.stack(smaller)).mean((2, 3, 4))
    assert apart.max() < 20 and apart.argmin(0).tolist() == list(range(12))  # each is nearest to its own


def test_a_key_frame_every_few(tmp_path):
    data = made(tmp_path, frames=50, fps=24)
    times, keys, _, size = frames(reencode.clip(data, Target(size=400), "clip"))  # larger: the size stays
    assert size == (64, 48) and len(times) == 50
    assert [number for number, key in enumerate(keys) if key] == list(range(0, 50, GOP))


def test_a_higher_rate_repeats_nothing(tmp_path):
    data = made(tmp_path, frames=9, fps=3)
    times = frames(reencode.clip(data, Target(fps=30), "clip"))[0]
    assert np.allclose(times, np.arange(9) / 3, atol=1e-4)


def test_odd_sizes_become_even(tmp_path):
    data = made(tmp_path, size=(130, 74))
    assert frames(reencode.clip(data, Target(size=37), "clip"))[-1] == (64, 36)


# --- colours ---------------------------------------------------------------------------------------------------------

COLOURS = {
    "601.mp4": ("bt601", "tv", "yuv420p", "libx264 -qp 8"),
    "709.mp4": ("bt709", "tv", "yuv420p", "libx264 -qp 8 -colorspace bt709"),
    "2020.mp4": ("bt2020", "tv", "yuv420p10le", "libx264 -qp 8 -colorspace bt2020nc"),
    "full.mp4": ("bt709", "pc", "yuv420p", "libx264 -qp 8 -colorspace bt709 -color_range pc"),
    "mjpeg.mov": ("bt601", "pc", "yuvj420p", "mjpeg -q 2"),
    "png.mov": (None, None, "rgb24", "png"),
    "qtrle.mov": (None, None, "argb", "qtrle"),
}


@pytest.mark.parametrize("target", [Target(fps=10), Target(size=48)])
@pytest.mark.parametrize("name", COLOURS)
def test_colours_stay(tmp_path, name, target):
    matrix, levels, form, codec = COLOURS[name]
    colours = [(200, 50, 20), (20, 180, 60), (30, 40, 210), (250, 250, 250), (8, 8, 8), (128, 128, 128)]
    pictures = np.repeat(np.array(colours, np.uint8)[:, None], 128 * 96, 1)
    scale = f"scale=out_color_matrix={matrix}:out_range={levels}," if matrix else ""
    source = ("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", "128x96", "-r", "10", "-i", "-")
    made = ("-vf", f"{scale}format={form}", "-c:v", *codec.split(), str(tmp_path / name))
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", *source, *made]
    subprocess.run(command, input=pictures.tobytes(), check=True)
    (tmp_path / "prepared.mp4").write_bytes(reencode.clip((tmp_path / name).read_bytes(), target, name))
    before, after = (video.decode_frames(str(tmp_path / one), 6).frames for one in (name, "prepared.mp4"))
    assert len(before) == len(after) == len(colours)
    means = [np.stack([pixels.mean((0, 1)) for pixels in clip]) for clip in (before, after)]
    apart = np.abs(means[1] - means[0])
    assert apart.max() < 4 and apart.mean(0).max() < 3  # rounding to yuv420p and back alone takes up to 3
    with av.open(str(tmp_path / "prepared.mp4")) as container:
        codec = container.streams.video[0].codec_context
        assert (codec.colorspace, codec.color_range) == (Colorspace.ITU601, ColorRange.MPEG)


# --- what is on screen -------------------------------------------------------------------------------------------


def shown(data):
    """Number of the frame that each picture spells: see `numbered`."""
    return [round(float(pixels.mean()) / STEP) for pixels in data]


def numbered(tmp_path, name, times, fps=30, **how):
    """A clip whose frame i is a flat grey of brightness `STEP * i`, shown from times[i] / fps seconds on."""
    return write_clip(tmp_path / name, grey(len(times), (64, 48)), fps=fps, times=times, **how)


def prepared(tmp_path, path, target):
    """Path and stated duration of the clip that is made, and what ffmpeg's demuxer and decoder say of it."""
    data = reencode.clip(Path(path).read_bytes(), target, str(path))
    (tmp_path / "prepared.mp4").write_bytes(data)
    with av.open(io.BytesIO(data)) as container:
        stream = container.streams.video[0]
        duration = float(stream.duration * stream.time_base)
        assert container.duration / av.time_base == pytest.approx(duration, abs=2e-3)
        frames = [(frame.time, frame.to_ndarray(format="rgb24")) for frame in container.decode(stream)]
    return str(tmp_path / "prepared.mp4"), duration, *zip(*frames, strict=True)


@pytest.mark.parametrize("fps", [1, 8])
def test_the_frame_that_is_held_stays(tmp_path, fps):
    """From 0.4 to 20 s one frame is on screen."""
    path = CASES / "prepare_fps_hold/hold.mp4"
    whole = video.decode_frames(str(path), 1000)
    made, duration, times, pixels = prepared(tmp_path, path, Target(fps=fps))
    assert duration == pytest.approx(22.5) == whole.duration
    assert times[4 if fps == 8 else 1] == pytest.approx(0.4, abs=1e-3)
    for at in np.arange(0, 22.5, 1 / fps):
        expected = whole.frames[int(np.searchsorted(whole.times, at + 1e-3, "right")) - 1]
        found = pixels[int(np.searchsorted(times, at + 1e-3, "right")) - 1]
        assert np.abs(expected.astype(int) - found).mean() < 6, at
    for rule in ("uniform", "segment", "segment_mid", "segment_start", "fps"):
        taken = video.decode_frames(made, 6, rule=rule)
        for at, found in zip(taken.times, taken.frames, strict=True):
            expected = whole.frames[int(np.searchsorted(whole.times, at + 1e-3, "right")) - 1]
            assert np.abs(expected.astype(int) - found).mean() < 6, (rule, at)


@pytest.mark.parametrize("fps", [1, 8, 30])
def test_the_last_picture_of_a_gif_keeps_its_time(tmp_path, fps):
    """Two pictures, for 0.1 s and 5 s."""
    source = CASES / "prepare_fps_hold/two.gif"
    _, duration, times, pixels = prepared(tmp_path, source, Target(fps=fps))
    assert duration == pytest.approx(5.1) and times == pytest.approx((0, 0.1))
    for ours, theirs in zip(pixels, decode_all(source)[1], strict=True):
        assert np.abs(ours.astype(int) - theirs).mean() < 6


# MPEG-TS states no duration for its last frame, nor does Matroska one that differs from the others'.
@pytest.mark.parametrize(("name", "how"), [("c.mp4", {}), ("c.mp4", {"b_frames": 0}), ("c.mkv", {}), ("c.ts", {})])
@pytest.mark.parametrize("seed", range(3))
def test_at_each_slot_what_is_on_screen(tmp_path, name, how, seed):
    rng = np.random.default_rng(seed)
    times = [0, *np.cumsum(rng.choice([1, 2, 5, 40], 19)).tolist()]
    path = numbered(tmp_path, name, times, gop=7, **how)
    for fps in (0.7, 3, 12, 100):
        _, duration, kept, pixels = prepared(tmp_path, path, Target(fps=fps))
        assert times[-1] / 30 < duration <= times[-1] / 30 + 2
        numbers = shown(pixels)
        # No other frame is kept than those on screen at some slot, each at its own time.
        on_screen = [int(np.searchsorted(times, 30 * at + 0.1, "right")) - 1 for at in np.arange(0, duration, 1 / fps)]
        assert numbers == sorted(set(on_screen))
        assert kept == pytest.approx([times[number] / 30 for number in numbers], abs=2e-3)


def test_nothing_changes_where_no_frame_is_left_out(tmp_path):
    """Frames far apart, and reordered ones: the same times and the same duration."""
    times = [0, 3, 4, 5, 200, 201, 900, 901, 902, 1500]
    path = numbered(tmp_path, "c.mp4", times, gop=20, b_frames=3)
    with av.open(path) as container:
        stated = float(container.streams.video[0].duration * container.streams.video[0].time_base)
    for target in (Target(size=100), Target(fps=60)):
        _, duration, kept, pixels = prepared(tmp_path, path, target)
        assert shown(pixels) == list(range(10)) and kept == pytest.approx([time / 30 for time in times], abs=1e-4)
        assert max(stated, times[-1] / 30) <= duration + 1e-3 and duration < times[-1] / 30 + 0.1


@pytest.mark.parametrize("total", [1, 2, 3, 16, 17, 18, 20])
def test_every_frame_is_decoded_before_it_is_shown(tmp_path, total):
    path = numbered(tmp_path, "c.mp4", range(total), b_frames=3)
    made, duration, *_ = prepared(tmp_path, path, Target(size=100))
    with av.open(made) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
        unit = float(container.streams.video[0].time_base)
    assert any(packet.pts > packet.dts for packet in packets) or total < 4  # x264 reorders
    assert all(packet.pts >= packet.dts for packet in packets) and packets[0].dts == packets[0].pts == 0
    assert all(a.dts < b.dts for a, b in itertools.pairwise(packets))
    if any(packet.duration for packet in packets):  # PyAV 15 does not tell
        assert (packets[-1].dts + packets[-1].duration) * unit == pytest.approx(total / 30)
    assert duration == pytest.approx(total / 30)


def test_times_that_go_back(tmp_path):
    """As in two recordings that were joined."""
    data = Path(numbered(tmp_path, "c.ts", list(range(12)))).read_bytes()
    (tmp_path / "two.ts").write_bytes(data + data)
    _, duration, times, pixels = prepared(tmp_path, tmp_path / "two.ts", Target(size=100))
    assert len(pixels) >= 12 and all(a < b for a, b in itertools.pairwise(times)) and duration > times[-1]


# --- what is accepted --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [Target(size=48), Target(fps=4), Target(size=1000)])
def test_a_download_that_broke_off(tmp_path, target):
    path = CASES / "mp4_cut_download/cut.mp4"
    taken = video.decode_frames(str(path), reencode.PROBED)
    _, duration, times, _ = prepared(tmp_path, path, target)
    assert duration == pytest.approx(taken.duration, abs=0.05) and 0.75 * duration < times[-1] < duration


@pytest.mark.parametrize(("broken", "accepted"), [(8, True), (5, False)])
def test_after_damage_frames_begin_at_a_key_frame(tmp_path, broken, accepted):
    """Frames 5, 15, 25, ... are those by which the clip is judged."""
    frames = (np.full((48, 64, 3), 3 * number, np.uint8) for number in range(80))
    path = Path(write_clip(tmp_path / "c.mp4", frames, gop=5, b_frames=0, codec_options={"crf": "1"}))
    with av.open(str(path)) as container:
        packet = [packet for packet in container.demux(video=0) if packet.size][broken]
        place, size = packet.pos, packet.size
    data = path.read_bytes()
    path.write_bytes(data[:place] + bytes(size) + data[place + size :])
    if accepted:
        assert len(video.decode_frames(str(path), reencode.PROBED).frames) == reencode.PROBED
        _, duration, times, pixels = prepared(tmp_path, path, Target(size=100))
        left = [number for number in range(80) if number not in (8, 9)]
        assert [round(float(one.mean()) / 3) for one in pixels] == left
        assert times == pytest.approx([number / 10 for number in left]) and duration == pytest.approx(8)
    else:
        damaged = path.read_bytes()
        for use in (lambda: reencode.clip(damaged, Target(100), "c"), lambda: reencode.probe(damaged, "c")):
            with pytest.raises(BadSampleError, match="corrupt"):
                use()


def test_every_error_of_a_decoder_is_damage(tmp_path):
    """FFmpeg's ProRes decoder says "operation not permitted" of a frame header that it does not know."""
    path = Path(write_clip(tmp_path / "c.mov", moving(80, (64, 48)), codec="prores_ks", pix_fmt="yuv422p10le"))
    data = bytearray(path.read_bytes())
    headers = [found.start() for found in re.finditer(b"icpf", data)]
    assert len(headers) == 80
    data[headers[8] + 16] = 0x4A  # frames 5, 15, 25, ... are those by which the clip is judged
    path.write_bytes(data)
    with av.open(str(path)) as container, pytest.raises(av.FFmpegError) as caught:
        list(container.decode(video=0))
    assert not isinstance(caught.value, av.InvalidDataError)
    assert len(video.decode_frames(str(path), reencode.PROBED).frames) == reencode.PROBED
    for target in (Target(size=24), Target(fps=10)):
        _, _, times, _ = prepared(tmp_path, path, target)
        assert len(times) == 79


def test_a_part_beyond_the_end_is_empty_to_prepare_too(tmp_path):
    path = write_clip(tmp_path / "c.mp4", grey(20, (64, 48)), fps=10)
    for span, cause in (((0.5, 1.0), ""), ((5.0, 6.0), "empty")):
        record = Record("1", "notes.json: 0", (("video", path),), (Turn("?", "!"),), span=span)
        assert Checker([record], None)(0).cause == cause
        for target in (Target(), Target(size=24)):
            with contextlib.nullcontext() if not cause else pytest.raises(BadSampleError, match=cause):
                record_bytes(record, target)


def test_sound_is_dropped_and_sound_alone_is_no_video(tmp_path):
    file = tmp_path / "both.mp4"
    with av.open(str(file), "w") as container:
        pictures = container.add_stream("libx264", rate=10)
        pictures.width, pictures.height, pictures.pix_fmt = 64, 48, "yuv420p"
        voice = container.add_stream("aac", rate=16000)
        for _ in range(5):
            container.mux(pictures.encode(av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24")))
        said = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), format="fltp", layout="mono")
        said.sample_rate = 16000
        for packet in (*pictures.encode(None), *voice.encode(said), *voice.encode(None)):
            container.mux(packet)
    assert len(frames(reencode.clip(file.read_bytes(), Target(fps=5), "both"))[0]) == 3
    user_folder.sound(tmp_path / "sound.mp4")
    with pytest.raises(BadSampleError, match="no_video"):
        reencode.clip((tmp_path / "sound.mp4").read_bytes(), Target(fps=5), "sound")


@pytest.mark.parametrize(("cut", "cause"), [(0, "empty"), (20, "corrupt"), (400, "corrupt")])
def test_what_does_not_decode_is_refused(tmp_path, cut, cause):
    data = made(tmp_path)[:cut]
    for read in (lambda: reencode.clip(data, Target(fps=5), "torn"), lambda: reencode.probe(data, "torn")):
        with pytest.raises(BadSampleError) as caught:
            read()
        assert caught.value.cause == cause and "torn" in caught.value.detail


@pytest.mark.parametrize("name", ["a.jpg", "a.png"])
def test_images(tmp_path, name):
    user_folder.image(tmp_path / name, (90, 60))
    data = (tmp_path / name).read_bytes()
    assert reencode.image(data, Target(60), name) == data == reencode.image(data, Target(fps=2), name)
    with Image.open(io.BytesIO(reencode.image(data, Target(30), name))) as smaller:
        assert smaller.size == (45, 30) and smaller.format == {"a.jpg": "JPEG", "a.png": "PNG"}[name]
    with pytest.raises(BadSampleError, match="corrupt"):
        reencode.image(data[: len(data) // 2], Target(60), name)


def encoded_often(encode):
    """What `encode` returns in 60 calls, with other bytes on the heap before each."""
    rng, held, seen = np.random.default_rng(0), [], set()
    for number in range(60):
        seen.add(encode())
        held.append(rng.integers(0, 255, 1000 * (1 + number % 97), np.uint8))
        if number % 3:
            held.pop(0)
    return seen


@pytest.fixture
def tiles():
    """Frames that x264 coded differently from run to run: tiles that move sideways."""
    picture = np.random.default_rng(0).integers(0, 255, (4, 4, 3), np.uint8).repeat(16, 0).repeat(16, 1)
    return np.stack([np.roll(picture, 3 * number, 1) for number in range(24)])


@pytest.mark.parametrize("target", [Target(40, 4), Target(9999), Target(fps=6)])
def test_the_same_bytes_every_time(tmp_path, tiles, target):
    write_mp4(tmp_path / "clip.mp4", tiles, fps=8)
    data = (tmp_path / "clip.mp4").read_bytes()
    assert len(encoded_often(lambda: reencode.clip(data, target, "clip"))) == 1


def test_embedded_clips_are_the_same_bytes_every_time(tmp_path, tiles):
    def encode():
        write_mp4(tmp_path / "clip.mp4", tiles, fps=8)
        return (tmp_path / "clip.mp4").read_bytes()

    assert len(encoded_often(encode)) == 1
