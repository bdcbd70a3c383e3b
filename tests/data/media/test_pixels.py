"""Frames are shown as FFmpeg shows them: turned, mirrored, with square pixels."""

import struct
import subprocess
from pathlib import Path

import av
import imageio_ffmpeg
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.media_files import moving, write_clip

from vlvm_jax.data.faults import BadSampleError
from vlvm_jax.data.media import frames as video
from vlvm_jax.data.media.pixels import UPRIGHT, Orientation, orientation
from vlvm_jax.data.record import Record, Turn
from vlvm_jax.data.tools.check import Checker
from vlvm_jax.data.tools.record_bytes import record_bytes
from vlvm_jax.data.tools.reencode import Target

CASES = Path(__file__).parents[1] / "cases"
FFMPEG = imageio_ffmpeg.get_ffmpeg_exe()


def ffmpeg(*arguments):
    return subprocess.run([FFMPEG, "-v", "error", "-y", *map(str, arguments)], check=True, capture_output=True).stdout


def first_shown(path, size, *options):
    """The first frame as `ffmpeg` turns it; `size` is the width and height expected."""
    raw = ffmpeg("-i", path, "-frames:v", 1, *options, "-f", "rawvideo", "-pix_fmt", "rgb24", "-")
    return np.frombuffer(raw, np.uint8).reshape(*size[::-1], 3)


def first_frame(path):
    return video.decode_frames(str(path), 99).frames[0]


def prepared(path, into, target):
    """The clip in the record that `prepare` makes of it."""
    record = Record("1", "notes.json: 0", (("video", str(path)),), (Turn("?", "!"),))
    assert Checker([record], None)(0).cause == ""
    into.write_bytes(record_bytes(record, target)[1][0].data)
    return into


# --- orientation -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("clip") / "c.mp4", moving(3, (64, 48)))


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("angle", [0, 90, 180, 270])
def test_all_orientations_are_shown_as_ffmpeg_shows_them(tmp_path, plain, angle, mirrored):
    path = tmp_path / "turned.mp4"
    flip = ["-display_hflip"] if mirrored else []
    ffmpeg("-display_rotation", angle, *flip, "-i", plain, "-c", "copy", path)
    size = (48, 64) if angle % 180 else (64, 48)
    expected = first_shown(path, size)
    np.testing.assert_array_equal(first_frame(path), expected)
    made = prepared(path, tmp_path / "made.mp4", Target(size=200))
    with av.open(str(made)) as container:
        frame = next(container.decode(video=0))
        assert (frame.width, frame.height) == size and orientation(frame) == UPRIGHT
    apart = [np.abs(first_frame(made).astype(int) - way).mean() for way in (expected, expected[:, ::-1])]
    assert 4 * apart[0] < apart[1]


def test_a_mirrored_clip_is_not_upside_down(tmp_path):
    path = CASES / "mirrored/hflip.mp4"
    with av.open(str(path)) as container:
        stored = next(container.decode(video=0)).to_ndarray(format="rgb24")
    assert not np.array_equal(stored, stored[:, ::-1])
    np.testing.assert_array_equal(first_frame(path), stored[:, ::-1])
    made = first_frame(prepared(path, tmp_path / "made.mp4", Target(size=200))).astype(int)
    apart = [np.abs(made - way).mean() for way in (stored[:, ::-1], stored, stored[::-1], stored[::-1, ::-1])]
    assert 4 * apart[0] < min(apart[1:])


class Turned:
    """A frame that has only a display matrix."""

    def __init__(self, a, b, c, d):
        data = struct.pack("=9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
        self.side_data = {av.sidedata.sidedata.Type.DISPLAYMATRIX: data}


@given(st.floats(-180, 180), st.booleans())
def test_other_angles_are_shown_by_the_nearest_quarter_turn(angle, mirrored):
    quarters = round(angle / 90)
    if abs(angle - 90 * quarters) > 44.99:
        return
    near = [orientation(Turned(*matrix(degrees, mirrored))) for degrees in (angle, 90 * quarters)]
    assert near[0] == near[1]


def matrix(degrees, mirrored):
    """A display matrix's four numbers: mirrored first, then turned clockwise."""
    radians = np.deg2rad(degrees)
    a, b = np.cos(radians), np.sin(radians)
    return [round(65536 * value) for value in (-a if mirrored else a, -b if mirrored else b, -b, a)]


def test_a_matrix_of_zeros_counts_as_upright():
    assert orientation(Turned(0, 0, 0, 0)) == Orientation(False, False, False)


# --- the shape of pixels -----------------------------------------------------------------------------------------


def with_aspect(path, width, height):
    """The anamorphic case with another width and height of a pixel in its header."""
    data = bytearray((CASES / "sar/sar.mp4").read_bytes())
    at = data.index(b"pasp") + 4
    data[at : at + 8] = struct.pack(">2I", width, height)
    path.write_bytes(bytes(data))
    return path


@pytest.mark.parametrize(
    ("aspect", "width"), [((2, 1), 320), ((1, 1), 160), ((1, 2), 80), ((16, 15), 171), ((10, 11), 145)]
)
def test_anamorphic_clips_get_square_pixels(tmp_path, aspect, width):
    path = with_aspect(tmp_path / "c.mp4", *aspect)
    found = first_frame(path)
    assert found.shape == (96, width, 3)
    expected = first_shown(path, (width, 96), "-vf", f"scale={width}:96,setsar=1").astype(int)
    assert np.abs(found - expected).mean() < 1
    made = prepared(path, tmp_path / "made.mp4", Target(size=96))
    with av.open(str(made)) as container:
        stream = container.streams.video[0]
        assert (stream.width, stream.height) == (width - width % 2, 96)
        assert (stream.sample_aspect_ratio or 1) == 1
    smaller = prepared(path, tmp_path / "smaller.mp4", Target(size=48))
    assert min(first_frame(smaller).shape[:2]) == 48


def test_an_unstated_aspect_counts_as_square(tmp_path):
    path = write_clip(tmp_path / "c.mp4", moving(3, (64, 48)))
    with av.open(path) as container:
        assert not container.streams.video[0].sample_aspect_ratio
    assert first_frame(path).shape == (48, 64, 3)


@pytest.mark.parametrize("form", ["mkv", "ts", "avi"])
def test_the_shape_of_pixels_may_stand_in_the_codec_alone(tmp_path, form):
    path = tmp_path / f"c.{form}"
    ffmpeg("-i", CASES / "sar/sar.mp4", "-c", "copy", *(["-bsf:v", "h264_mp4toannexb"] * (form != "mkv")), path)
    assert first_frame(path).shape == (96, 320, 3)


def test_where_the_shape_of_pixels_changes_the_first_counts(tmp_path):
    parts = []
    for number, aspect in enumerate((2, 1)):
        clip = with_aspect(tmp_path / f"{number}.mp4", aspect, 1)
        setting = f"h264_metadata=sample_aspect_ratio={aspect}/1"
        raw = tmp_path / f"{number}.h264"
        ffmpeg("-i", clip, "-c", "copy", "-bsf:v", f"h264_mp4toannexb,{setting}", raw)
        parts.append(raw.read_bytes())
    (tmp_path / "c.h264").write_bytes(b"".join(parts))
    frames = video.decode_frames(str(tmp_path / "c.h264"), 99).frames
    assert len(frames) == 60 and {frame.shape for frame in frames} == {(96, 320, 3)}


def test_a_turned_anamorphic_clip(tmp_path):
    path = tmp_path / "c.mp4"
    ffmpeg("-display_rotation", 90, "-i", CASES / "sar/sar.mp4", "-c", "copy", path)
    assert first_frame(path).shape == (320, 96, 3)
    made = prepared(path, tmp_path / "made.mp4", Target(size=48))
    assert first_frame(made).shape == (160, 48, 3)


@pytest.mark.parametrize(
    ("aspect", "cause"),
    [((65535, 1), "too_large"), ((2**31 - 1, 1), "too_large"), ((1, 65535), "corrupt"), ((1, 2**31 - 1), "corrupt")],
)
def test_impossible_shapes_of_pixels_are_refused(tmp_path, aspect, cause):
    path = with_aspect(tmp_path / "c.mp4", *aspect)
    record = Record("1", "notes.json: 0", (("video", str(path)),), (Turn("?", "!"),))
    assert Checker([record], None)(0).cause == cause
    for use in (lambda: first_frame(path), lambda: record_bytes(record, Target(size=48))):
        with pytest.raises(BadSampleError) as caught:
            use()
        assert caught.value.cause == cause and str(path) in caught.value.detail


def test_the_limit_is_of_the_size_that_is_shown(tmp_path, monkeypatch):
    monkeypatch.setattr("vlvm_jax.data.media.pixels.MAX_PIXELS", 200 * 96)
    assert first_frame(with_aspect(tmp_path / "a.mp4", 1, 1)).shape == (96, 160, 3)
    with pytest.raises(BadSampleError, match=r"too_large.* 320 x 96"):
        first_frame(CASES / "sar/sar.mp4")
