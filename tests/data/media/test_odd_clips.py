"""Clips as they come from recorders, cameras and broken downloads."""

import bisect
import math
import subprocess
from fractions import Fraction
from pathlib import Path

import av
import imageio_ffmpeg
import numpy as np
import pytest
from support.media_files import decode_all, write_clip
from support.numbered_clips import SIZE, numbers_in, picture, shown_by_ffmpeg

from vlvm_jax.data.faults import BadSampleError, reading
from vlvm_jax.data.media import video_file
from vlvm_jax.data.media.frame_rules import uniform_indices
from vlvm_jax.data.media.frames import decode_clip
from vlvm_jax.data.media.video_file import open_video
from vlvm_jax.data.tools import check
from vlvm_jax.data.tools.check import Checker
from vlvm_jax.data.tools.prepare import open_records
from vlvm_jax.errors import InputError
from vlvm_jax.families import smolvlm
from vlvm_jax.storage import StorageError

CASES = Path(__file__).parent.parent / "cases"
MPEG2 = {"codec": "mpeg2video", "form": "vob"}


def take(path, count=8, **options):
    return decode_clip(str(path), count, lambda pixels: pixels, **options)


def pictures(first, last):
    return map(picture, range(first, last))


def ffmpeg(*arguments):
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", "-y", *map(str, arguments)]
    subprocess.run(command, check=True)


# --- the decoder's errors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [IndexError("list index out of range"), RuntimeError("odd"), TypeError("no")])
def test_whatever_the_decoder_raises_is_a_bad_sample(tmp_path, monkeypatch, error):
    path = write_clip(tmp_path / "c.mp4", pictures(0, 20))

    def fail(*args):
        raise error

    monkeypatch.setattr("vlvm_jax.data.media.cursor.Cursor.shown_at", fail)
    with pytest.raises(BadSampleError) as caught:
        take(path)
    assert caught.value.cause == "corrupt"
    assert caught.value.detail == f"{path} ({type(error).__name__}: {error})"
    with pytest.raises(BadSampleError, match=type(error).__name__), reading("image.png"):
        raise error


@pytest.mark.parametrize("error", [InputError("no access"), MemoryError(), KeyboardInterrupt(), StorageError("gone")])
def test_what_is_no_samples_fault_passes_through(tmp_path, error):
    path = write_clip(tmp_path / "c.mp4", pictures(0, 5))
    with Path(path).open("rb") as file:
        for context in (open_video(file, path), reading(path)):
            with pytest.raises(type(error)), context:
                raise error


# --- streams that appear late ------------------------------------------------------------------------------------


def test_sound_that_begins_late(tmp_path):
    records = open_records([str(CASES / "late_stream/notes.jsonl")])
    damaged = next(i for i in range(len(records)) if "flv" in str(records[i].media))
    findings = check.examine(Checker(records, None), range(damaged - 3, min(damaged + 4, len(records))), 0)
    assert [finding.cause for finding in findings] == [""] * len(findings)
    path = CASES / "late_stream/damaged.flv"
    times = shown_by_ffmpeg(path, numbered=False)[0]
    clip = take(path)
    assert clip.times == pytest.approx([times[i] for i in uniform_indices(len(times), 8)], abs=0.1)
    assert len({frame.tobytes() for frame in clip.frames}) == 8


@pytest.mark.parametrize("name", ["c.flv", "c.ts"])
def test_pictures_that_begin_late(tmp_path, name):
    path = tmp_path / name
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=25)
        video.width, video.height, video.pix_fmt = *SIZE, "yuv420p"
        sound = container.add_stream("aac", rate=16000, layout="mono")
        packets = []
        noise = np.random.default_rng(0).normal(0, 0.1, (1800, 1, 1024)).astype(np.float32)
        for number, samples in enumerate(noise):
            wave = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
            wave.sample_rate, wave.pts = 16000, 1024 * number
            packets += sound.encode(wave)
        packets += sound.encode(None)
        for number in range(20):
            frame = av.VideoFrame.from_ndarray(picture(number), format="rgb24")
            frame.pts, frame.time_base = 25 * 110 + number, Fraction(1, 25)
            packets += video.encode(frame)
        packets += video.encode(None)
        container.mux(sorted(packets, key=lambda packet: packet.dts * float(packet.time_base)))
    assert numbers_in(take(path, 5).frames) == uniform_indices(20, 5)


# --- indexes and times that cannot be trusted --------------------------------------------------------------------


def test_an_avi_that_lost_its_index():
    path = CASES / "avi_truncated_msmpeg4/ms_trunc.avi"
    pixels = decode_all(path)[1]
    clip = take(path)
    for frame, number in zip(clip.frames, range(1, 23, 3), strict=True):
        np.testing.assert_array_equal(frame, pixels[number])
    assert clip.times == pytest.approx([number / 25 for number in range(1, 23, 3)])
    part = take(path, 3, span=(0.4, 0.7))  # frames 10 to 17
    for frame, number in zip(part.frames, (11, 14, 16), strict=True):
        np.testing.assert_array_equal(frame, pixels[number])


@pytest.mark.parametrize("searched", [False, True])
@pytest.mark.parametrize("lengths", [(40, 40), (8, 60), (60, 8)])
@pytest.mark.parametrize(("name", "how"), [("c.ts", {}), ("c.mpg", MPEG2)])
def test_joined_files(tmp_path, monkeypatch, name, how, lengths, searched):
    """Their times start again in the middle."""
    if searched:
        monkeypatch.setattr(video_file, "_SMALL", 0)
        monkeypatch.setattr(video_file, "_PROBE", 2**9)
    first, total = lengths[0], sum(lengths)
    parts = [pictures(0, first), pictures(first, total)]
    joined = tmp_path / name
    for frames in parts:
        write_clip(tmp_path / f"part-{name}", frames, fps=25, gop=10, **how)
        with joined.open("ab") as file:
            file.write((tmp_path / f"part-{name}").read_bytes())
    times, numbers, end = shown_by_ffmpeg(joined)
    assert numbers == list(range(total))
    clip = take(joined, 40, rule="fps", fps=10)
    slots = [slot / 10 for slot in range(40) if slot / 10 < end - 1.5e-3]
    assert numbers_in(clip.frames) == [bisect.bisect_right(times, slot + 1e-4) - 1 for slot in slots]
    assert clip.duration == pytest.approx(end, abs=2e-3)
    clip = take(joined, 40)
    assert numbers_in(clip.frames) == pytest.approx(uniform_indices(total, 40), abs=1)  # there may be a gap
    assert clip.times == pytest.approx([times[number] for number in numbers_in(clip.frames)], abs=2e-3)


@pytest.mark.parametrize("b_frames", [0, 2])
def test_an_mpeg_program_stream_that_states_some_times_only(tmp_path, b_frames):
    """A time is stated once for each packet of 2 KB, which several small frames share."""
    rng = np.random.default_rng(0)
    frames = (np.clip(p + rng.integers(-20, 20, p.shape) * (i % 3 == 0), 0, 255) for i, p in enumerate(pictures(0, 60)))
    path = tmp_path / "c.mpg"
    write_clip(path, (f.astype(np.uint8) for f in frames), form="vob", gop=12, b_frames=b_frames, fps=25)
    with av.open(str(path)) as container:
        stated = [packet.pts is not None for packet in container.demux(video=0) if packet.size]
    assert any(stated) and not all(stated)
    times = shown_by_ffmpeg(path)[0]
    for count in (7, 20, 60):
        clip = take(path, count)
        assert numbers_in(clip.frames) == uniform_indices(60, count)
        assert clip.times == pytest.approx([times[i] for i in uniform_indices(60, count)], abs=2e-3)


def test_flv_whose_count_of_milliseconds_overflows(tmp_path):
    source, path = tmp_path / "source.mp4", tmp_path / "c.flv"
    write_clip(source, pictures(0, 60), fps=25, gop=12, b_frames=2)
    ffmpeg("-i", source, "-c", "copy", "-output_ts_offset", -1, "-avoid_negative_ts", "disabled", path)
    clip = take(path)
    assert numbers_in(clip.frames) == uniform_indices(60, 8) and clip.duration == pytest.approx(2.4)


@pytest.mark.parametrize("name", ["c.mp4", "c.mov", "c.mkv", "c.ts", "c.flv"])
@pytest.mark.parametrize("start", [0.5, 0.48])
def test_a_cut_without_encoding(tmp_path, name, start):
    """MP4 leaves frames out by an edit list, also within a frame."""
    source, path = tmp_path / "source.mp4", tmp_path / name
    write_clip(source, pictures(0, 60), fps=25, gop=12, b_frames=2)
    ffmpeg("-ss", start, "-i", source, "-c", "copy", path)
    times, numbers, end = shown_by_ffmpeg(path)
    for count in (8, 100):
        clip = take(path, count)
        chosen = uniform_indices(len(numbers), count)
        assert numbers_in(clip.frames) == [numbers[i] for i in chosen]
        assert clip.times == pytest.approx([times[i] for i in chosen], abs=2e-3)
        assert clip.duration == pytest.approx(end, abs=2e-3)


@pytest.mark.parametrize("b_frames", [0, 2])
@pytest.mark.parametrize("name", ["c.avi", "copied.avi", "sparse.avi"])
def test_h264_in_avi(tmp_path, name, b_frames):
    """AVI states no times. FFmpeg counts these frames from 1, and where frames are far apart writes empty chunks."""
    path = tmp_path / name
    off = 0.04 if (name, b_frames) == ("sparse.avi", 0) else 2e-3  # FFmpeg gives the last frame too early a time
    if name == "c.avi":
        write_clip(path, pictures(0, 60), fps=25, gop=12, b_frames=b_frames)
    else:
        source, clock = tmp_path / "source.mp4", {"copied.avi": "25", "sparse.avi": "600"}[name]
        how = {"gop": 12, "b_frames": b_frames, "options": {"video_track_timescale": clock}}
        write_clip(source, pictures(0, 60), fps=25, **how)
        ffmpeg("-i", source, "-c", "copy", path)
    for count in (5, 8, 60):
        clip = take(path, count)
        assert numbers_in(clip.frames) == uniform_indices(60, count)
        assert clip.times == pytest.approx([number / 25 for number in uniform_indices(60, count)], abs=off)
        assert clip.duration == pytest.approx(2.4, abs=0.04 + off)
    assert numbers_in(take(path, 40, rule="fps", fps=5).frames) == list(range(0, 60, 5))
    assert numbers_in(take(path, 2, span=(1.0, 1.4)).frames) == [27, 32]


# --- how long the last frame is shown ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["two.gif", "c.mp4", "c.mov", "c.mkv", "c.webm"])
def test_a_clip_of_two_pictures_is_as_long_in_every_container(tmp_path, name):
    path = CASES / "gif_variable_delay" / name
    if name != "two.gif":
        ffmpeg("-i", CASES / "gif_variable_delay/two.gif", "-fps_mode", "vfr", "-pix_fmt", "yuv420p", tmp_path / name)
        path = tmp_path / name
    both = take(path)
    assert both.times == pytest.approx((0, 0.1)) and both.duration == pytest.approx(5.1)
    clip = take(path, rule="fps", fps=1)
    assert clip.times == pytest.approx((0, 0.1, 2, 3, 4, 5)) and clip.duration == pytest.approx(5.1)
    for frame, number in zip(clip.frames, (0, 1, 1, 1, 1, 1), strict=True):
        np.testing.assert_array_equal(frame, both.frames[number])
    capped = take(path, 4, rule="fps", fps=1)
    assert len(capped.frames) == 4 and capped.times == pytest.approx((0.1, 1.9125, 3.1875, 4.4625))


@pytest.mark.parametrize("name", ["c.mp4", "c.mov"])
@pytest.mark.parametrize("pauses", [{59: 500}, {50: 40, 55: 60}])
def test_a_pause_that_the_header_does_not_count(tmp_path, name, pauses):
    """With reordering, an MP4's header states the time from the first decoding to the last."""
    times = [number + sum(long for after, long in pauses.items() if number >= after) for number in range(60)]
    spread = "+".join(f"gte(N,{after})*{long}" for after, long in pauses.items())
    write_clip(tmp_path / "source.mkv", pictures(0, 60), fps=25)
    video = f"settb=1/25,setpts='N+{spread}'"
    encoder = ("-enc_time_base", "1/25", "-fps_mode", "passthrough", "-g", 12, "-bf", 2, "-pix_fmt", "yuv420p")
    ffmpeg("-i", tmp_path / "source.mkv", "-vf", video, *encoder, tmp_path / name)
    assert shown_by_ffmpeg(tmp_path / name)[0] == pytest.approx([time / 25 for time in times], abs=2e-3)
    clip = take(tmp_path / name, 100, rule="fps", fps=1)
    assert clip.duration == pytest.approx((times[-1] + 1) / 25, abs=0.05)
    slots = range(math.ceil((times[-1] + 1) / 25 - 1e-6))
    assert numbers_in(clip.frames) == [bisect.bisect_right(times, 25 * slot) - 1 for slot in slots]


def test_smolvlm_is_told_how_long_a_clip_is():
    clip = take(CASES / "gif_variable_delay/two.gif")
    assert " 0:00:05 " in smolvlm.Family().clip_pieces(None, clip.times, clip.duration, 1)[0]


SINGLE = {
    "c.mp4": {}, "c.mkv": {}, "c.ts": {}, "c.flv": {}, "c.webm": {"codec": "libvpx"}, "c.avi": {"codec": "mpeg4"},
    "c.mpg": MPEG2, "c.gif": {"codec": "gif", "pix_fmt": "rgb8"}, "c.mov": {"codec": "png", "pix_fmt": "rgb24"},
}  # fmt: skip


@pytest.mark.parametrize("name", SINGLE)
def test_a_clip_of_one_picture(tmp_path, name):
    path = write_clip(tmp_path / name, pictures(5, 6), fps=25, **SINGLE[name])
    for options in ({}, {"rule": "fps"}, {"rule": "segment_mid"}, {"span": (0.01, 3.0)}):
        clip = take(path, **options)
        assert numbers_in(clip.frames) == [5] and clip.times == (0,)
    with pytest.raises(BadSampleError, match="empty"):
        take(path, span=(0.05, 3.0))
