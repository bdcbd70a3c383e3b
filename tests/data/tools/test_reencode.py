"""Clips and images made smaller: size, times, key frames, and the same bytes every time."""

import io

import av
import numpy as np
import pytest
import user_folder
from PIL import Image

from vlvm_jax.data.faults import BadSampleError
from vlvm_jax.data.tools import reencode
from vlvm_jax.data.tools.reencode import GOP, Target


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


def turned(data: bytes) -> bytes:
    """The same MP4, with the matrix of its track saying that it is to be shown turned by 90 degrees."""
    identity = b"".join(n.to_bytes(4, "big") for n in (65536, 0, 0, 0, 65536, 0, 0, 0, 2**30))
    quarter = b"".join((n % 2**32).to_bytes(4, "big") for n in (0, 65536, 0, -65536, 0, 0, 0, 0, 2**30))
    head, track, tail = data.partition(b"tkhd")
    assert track and tail.count(identity) == 1
    return head + track + tail.replace(identity, quarter)


def test_turned_clips_come_out_upright(tmp_path):
    data = made(tmp_path, frames=3)
    plain, upright = (frames(reencode.clip(d, Target(size=200), "clip")) for d in (data, turned(data)))
    assert plain[-1] == (64, 48) and upright[-1] == (48, 64)
    apart = [np.abs(np.rot90(plain[2][0], turns).astype(int) - upright[2][0]).mean() for turns in (-1, 1)]
    assert apart[0] < 6 < 30 < apart[1]


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


@pytest.mark.parametrize("cut", [0, 20, 400])
def test_what_does_not_decode_is_corrupt(tmp_path, cut):
    data = made(tmp_path)[:cut]
    for read in (lambda: reencode.clip(data, Target(fps=5), "torn"), lambda: reencode.probe(data, "torn")):
        with pytest.raises(BadSampleError) as caught:
            read()
        assert caught.value.cause == "corrupt" and "torn" in caught.value.detail


@pytest.mark.parametrize("name", ["a.jpg", "a.png"])
def test_images(tmp_path, name):
    user_folder.image(tmp_path / name, (90, 60))
    data = (tmp_path / name).read_bytes()
    assert reencode.image(data, Target(60), name) == data == reencode.image(data, Target(fps=2), name)
    with Image.open(io.BytesIO(reencode.image(data, Target(30), name))) as smaller:
        assert smaller.size == (45, 30) and smaller.format == {"a.jpg": "JPEG", "a.png": "PNG"}[name]
    with pytest.raises(BadSampleError, match="corrupt"):
        reencode.image(data[: len(data) // 2], Target(60), name)


def test_an_image_on_its_side_is_set_up(tmp_path):
    file = tmp_path / "side.jpg"
    exif = Image.Exif()
    exif[274] = 6
    Image.new("RGB", (90, 60)).save(file, exif=exif)
    with Image.open(io.BytesIO(reencode.image(file.read_bytes(), Target(30), "side"))) as upright:
        assert upright.size == (30, 45) and not upright.getexif()


def test_the_same_bytes_every_time(tmp_path):
    data = made(tmp_path, frames=40, fps=30, size=(160, 120))
    assert len({reencode.clip(data, Target(60, 10), "clip") for _ in range(3)}) == 1
