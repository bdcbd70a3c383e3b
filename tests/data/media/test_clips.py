"""Frames from real files: that they are the right ones, the resize rule, and what is unusable."""

import av
import numpy as np
import pytest
from PIL import Image
from support.images import read_image

from vlvm_jax.data.media import frames as video
from vlvm_jax.data.media.frame_rules import uniform_indices
from vlvm_jax.data.media.frames import (
    BadSampleError,
    decode_clip,
    image_size,
    read_clip,
    resize,
)

STEP = 12  # brightness between neighbouring frames: far above what compression changes


def write_clip(path, total, *, size=(32, 32), fps=8, codec="libx264", pix_fmt="yuv420p", options=None):
    """A clip whose frame i is a flat grey of brightness `STEP * i`."""
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream(codec, rate=fps)
        stream.width, stream.height, stream.pix_fmt = *size, pix_fmt
        for i in range(total):
            pixels = np.full((size[1], size[0], 3), STEP * i, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return str(path)


def shown(frames):
    """The frame numbers that a decoded clip's brightness spells."""
    return np.rint(frames.mean(axis=(1, 2, 3)) / STEP).astype(int).tolist()


def cause(call, *args, **kwargs):
    with pytest.raises(BadSampleError) as caught:
        call(*args, **kwargs)
    assert str(args[0]) in caught.value.detail
    return caught.value.cause


# --- the right frames --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("total", [1, 2, 7, 13, 16, 21])
@pytest.mark.parametrize("count", [1, 4, 8])
def test_uniform_frames_of_a_real_clip(tmp_path, total, count):
    frames = read_clip(write_clip(tmp_path / "c.mp4", total), count, 16)
    assert frames.dtype == np.uint8 and frames.shape == (min(total, count), 16, 16, 3)
    assert shown(frames) == uniform_indices(total, count)


def test_times_and_duration_of_a_part_count_from_its_start(tmp_path):
    path = write_clip(tmp_path / "c.mp4", 20, fps=8)
    part = decode_clip(path, 4, lambda pixels: pixels, span=(0.5, 2.0))
    assert shown(part.frames) == [5, 8, 11, 14] and part.times == (0.125, 0.5, 0.875, 1.25) and part.duration == 1.5


@pytest.mark.parametrize(("fps", "cap", "expected"), [(2, 8, [0, 4, 8, 12, 16, 20]), (4, 3, [3, 10, 17])])
def test_fps_frames_of_a_real_clip(tmp_path, fps, cap, expected):
    path = write_clip(tmp_path / "c.mp4", 21, fps=8)
    assert shown(read_clip(path, cap, 16, rule="fps", fps=fps)) == expected


@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt"),
    [("c.mkv", "libx264", "yuv420p"), ("c.webm", "libvpx", "yuv420p"), ("c.avi", "mjpeg", "yuvj420p")],
)
def test_other_containers(tmp_path, name, codec, pix_fmt):
    path = write_clip(tmp_path / name, 11, codec=codec, pix_fmt=pix_fmt)
    assert shown(read_clip(path, 4, 16)) == uniform_indices(11, 4)


def test_a_header_without_a_frame_count(tmp_path):
    path = write_clip(tmp_path / "c.mkv", 19)
    with av.open(path) as container:
        assert container.streams.video[0].frames == 0
    assert shown(read_clip(path, 8, 16)) == uniform_indices(19, 8)
    assert shown(read_clip(path, 8, 16, rule="fps", fps=2)) == [0, 4, 8, 12, 16]
    assert shown(read_clip(path, 32, 16)) == list(range(19))


def test_only_the_chosen_frames_are_kept(tmp_path, monkeypatch):
    """Of an hour-long clip without a stated count, all frames would not fit in memory."""
    resized = []
    monkeypatch.setattr(video, "resize", lambda image, size: resized.append(1) or resize(image, size))
    for name in ("c.mkv", "c.mp4"):
        resized.clear()
        read_clip(write_clip(tmp_path / name, 20), 4, 16)
        assert len(resized) == 4


@pytest.mark.parametrize("count", [4, 8, 32])
def test_a_header_that_states_more_frames_than_there_are(tmp_path, count):
    """A fast-start file cut in its data: the header, in front, still counts every frame."""
    whole = write_clip(tmp_path / "whole.mp4", 21, options={"movflags": "faststart"})
    cut = tmp_path / "cut.mp4"
    with av.open(whole) as container:
        packets = [(p.pos, p.size) for p in container.demux(video=0) if p.size]
    cut.write_bytes((tmp_path / "whole.mp4").read_bytes()[: packets[14][0]])
    with av.open(str(cut)) as container:
        assert container.streams.video[0].frames == 21
        there = sum(1 for _ in container.decode(video=0))
    assert 8 <= there < 21
    frames = read_clip(str(cut), count, 16)
    assert len(frames) == min(there, count)
    numbers = shown(frames)
    assert numbers == sorted(set(numbers))
    if count < there:
        assert numbers[-1] < 14


def test_alpha_and_odd_sizes_decode(tmp_path):
    path = write_clip(tmp_path / "c.mov", 5, size=(33, 47), codec="png", pix_fmt="rgba")
    assert shown(read_clip(path, 5, 16)) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(("name", "fps"), [("c.mp4", 8), ("c.mkv", 5)])
def test_when_frames_were_and_how_long_the_clip_is(tmp_path, name, fps):
    seen = []
    clip = decode_clip(
        write_clip(tmp_path / name, 20, fps=fps, size=(48, 32)), 4, lambda pixels: seen.append(pixels) or pixels[:8, :8]
    )
    assert clip.times == tuple(i / fps for i in uniform_indices(20, 4)) and clip.duration == 20 / fps
    assert {pixels.shape for pixels in seen} == {(32, 48, 3)} and shown(clip.frames) == uniform_indices(20, 4)


# --- what cannot be used -----------------------------------------------------------------------------------------


def test_missing_clip_and_folder(tmp_path):
    assert cause(read_clip, str(tmp_path / "absent.mp4"), 4, 16) == "missing"
    assert cause(read_clip, str(tmp_path), 4, 16) == "empty"


def test_zero_bytes_and_garbage(tmp_path):
    for name, content, said in (
        ("zero.mp4", b"", "empty: {} (0 bytes)"),
        ("garbage.mp4", bytes(range(256)) * 20, "corrupt: {} (not a video, or damaged)"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(BadSampleError) as caught:
            read_clip(str(tmp_path / name), 4, 16)
        assert str(caught.value) == said.format(tmp_path / name)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_truncated_clip(tmp_path, share):
    write_clip(tmp_path / "whole.mp4", 12)
    content = (tmp_path / "whole.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(content[: int(len(content) * share)])
    assert cause(read_clip, str(tmp_path / "cut.mp4"), 4, 16) == "corrupt"


def test_sound_without_pictures(tmp_path):
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        sound.sample_rate = 16000
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    assert cause(read_clip, str(path), 4, 16) == "no_video"


def test_a_codec_that_nothing_decodes(tmp_path):
    path = tmp_path / "c.mp4"
    write_clip(path, 5)
    path.write_bytes(path.read_bytes().replace(b"avc1", b"zzzz"))
    assert cause(read_clip, str(path), 4, 16) == "corrupt"


def test_a_stream_without_frames(tmp_path):
    whole, cut = tmp_path / "whole.mp4", tmp_path / "cut.mp4"
    write_clip(whole, 9, options={"movflags": "faststart"})
    with av.open(str(whole)) as container:
        start = next(p.pos for p in container.demux(video=0) if p.size)
    cut.write_bytes(whole.read_bytes()[:start])
    assert cause(read_clip, str(cut), 4, 16) in ("empty", "corrupt")


def test_damage_gives_frames_or_a_bad_sample_and_nothing_else(tmp_path):
    write_clip(tmp_path / "whole.mp4", 6)
    content = (tmp_path / "whole.mp4").read_bytes()
    rng = np.random.default_rng(0)
    outcomes = set()
    for number in range(150):
        damaged = bytearray(content)
        # The header is at the end and short; most draws must hit it to reach the demuxer's own errors.
        where = len(damaged) - 1 - rng.integers(0, len(damaged) if number % 3 == 0 else 800, size=rng.integers(1, 20))
        for place in where:
            damaged[place] = rng.integers(256)
        path = tmp_path / f"{number}.mp4"
        path.write_bytes(bytes(damaged))
        try:
            assert read_clip(str(path), 4, 16).shape[1:] == (16, 16, 3)
            outcomes.add("frames")
        except BadSampleError as error:
            outcomes.add(error.cause)
    assert {"frames", "corrupt"} <= outcomes <= {"frames", "corrupt", "empty", "no_video", "too_large"}


# --- images and resizing -----------------------------------------------------------------------------------------


def picture(width, height, mode="RGB"):
    pixels = np.random.default_rng(width * height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def clip_by_hand(image, size):
    """HF's `CLIPImageProcessor`: the long edge rounds down, and so does the crop's corner."""
    short = min(image.size)
    width, height = (int(size * edge / short) for edge in image.size)
    scaled = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    return np.asarray(scaled)[top : top + size, left : left + size]


@pytest.mark.parametrize("size", [16, 32])
@pytest.mark.parametrize(
    "edges",
    [
        (64, 48),
        (48, 64),
        (100, 33),
        (33, 100),
        (53, 40),
        (20, 27),
        (16, 16),
        (334, 500),
        (427, 640),
        (1280, 720),
        (5, 400),
    ],
)
def test_resize_is_clips(edges, size):
    apart = np.abs(resize(picture(*edges), size).astype(int) - clip_by_hand(picture(*edges), size))
    assert apart.max() <= 1 and (apart > 0).mean() < 0.005
    assert edges[0] > edges[1] or apart.max() == 0  # of wide images only the square is computed


def test_an_image_of_the_right_size_is_untouched():
    image = picture(24, 24)
    np.testing.assert_array_equal(resize(image, 24), np.asarray(image))


@pytest.mark.parametrize(
    ("mode", "name"),
    [
        *((mode, "i.png") for mode in ("RGB", "P", "L", "1", "RGBA", "LA", "I;16")),
        *(("P", "i.gif"), ("L", "i.jpg"), ("CMYK", "i.jpg"), ("RGBA", "i.webp")),
    ],
)
def test_image_modes(tmp_path, mode, name):
    image = picture(40, 30, "L").convert("I;16") if mode == "I;16" else picture(40, 30, mode)
    image.save(tmp_path / name)
    with Image.open(tmp_path / name) as saved:
        grey = Image.fromarray(np.rint(np.asarray(saved) / 257).astype(np.uint8)) if mode == "I;16" else saved
        expected = clip_by_hand(grey.convert("RGB"), 16)
    frames = read_image(str(tmp_path / name), 16)
    assert frames.shape == (1, 16, 16, 3) and frames.dtype == np.uint8
    np.testing.assert_array_equal(frames[0], expected)


def test_unusable_images(tmp_path):
    picture(40, 30).save(tmp_path / "whole.png")
    content = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(content[: len(content) // 2])
    (tmp_path / "zero.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("not a picture")
    assert cause(read_image, str(tmp_path / "absent.png"), 16) == "missing"
    for name in ("cut.png", "zero.png", "text.png"):
        assert cause(read_image, str(tmp_path / name), 16) == "corrupt"
    with pytest.raises(BadSampleError) as caught:
        read_image(str(tmp_path / "text.png"), 16)
    assert caught.value.detail == f"{tmp_path}/text.png (not an image, or damaged)"
    assert cause(image_size, str(tmp_path / "absent.png")) == "missing"
    assert cause(image_size, str(tmp_path / "zero.png")) == "corrupt"


def test_a_broken_chunk_is_a_bad_sample(tmp_path):
    """PIL reports some broken PNGs as SyntaxError, and only when their pixels are read."""
    path = tmp_path / "i.png"
    picture(200, 200).save(path)
    content = path.read_bytes()
    at = content.index(b"IDAT", content.index(b"IDAT") + 4)
    path.write_bytes(content[:at] + b"\x80\x04\x00\x00" + content[at + 4 :])
    assert cause(read_image, str(path), 16) == "corrupt"


def test_a_decompression_bomb_is_a_bad_sample(tmp_path, monkeypatch):
    picture(40, 30).save(tmp_path / "i.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40 * 30 // 3)
    assert cause(read_image, str(tmp_path / "i.png"), 16) == "too_large"
