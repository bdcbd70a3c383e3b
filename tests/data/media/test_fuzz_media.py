"""Broken media by the hundred: a right sample or a counted cause; never a crash, a hang or a wrong sample.

Every case follows from its seed. A case that hangs, be it in FFmpeg, ends the process with a traceback.
"""

import collections
import faulthandler
import json
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from support.images import read_image
from support.media_files import decode_all, moving, write_clip, write_sound

from vlvm_jax.config import MixtureEntry
from vlvm_jax.data.faults import BadSampleError
from vlvm_jax.data.media import frames as video
from vlvm_jax.data.sources.mixture import read_mixture

SIZE, COUNT = (32, 24), 5
SECONDS = 20  # that a case may take on a busy machine
BASES = {
    "h264.mp4": {"gop": 8, "b_frames": 2},
    "fast.mp4": {"gop": 8, "options": {"movflags": "faststart"}},
    "fragments.mp4": {"gop": 8, "options": {"movflags": "frag_keyframe+empty_moov"}},
    "uneven.mp4": {"gop": 8, "fps": 30, "times": np.cumsum(np.arange(24) % 5 + 1).tolist()},
    "ten.mkv": {"gop": 8, "pix_fmt": "yuv420p10le"},
    "odd.mov": {"codec": "qtrle", "pix_fmt": "argb"},
    "vp9.webm": {"codec": "libvpx-vp9", "gop": 8, "codec_options": {"deadline": "realtime", "cpu-used": "8"}},
    "mpeg4.avi": {"codec": "mpeg4", "gop": 8, "b_frames": 0},
    "h264.ts": {"gop": 8},
    "film.gif": {"codec": "gif", "pix_fmt": "rgb8"},
    "one.mp4": {"gop": 8},
    "sound.mp4": None,
}
CAUSES = {"missing", "empty", "no_video", "corrupt", "too_large", "too_slow"}


@pytest.fixture(autouse=True)
def no_hang():
    yield
    faulthandler.cancel_dump_traceback_later()


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """Name of each base to its bytes."""
    folder = tmp_path_factory.mktemp("bases")
    for name, how in BASES.items():
        if how is None:
            write_sound(folder / name)
            continue
        size = (33, 25) if name.startswith("odd") else SIZE
        write_clip(folder / name, moving(1 if name.startswith("one") else 24, size), **how)
    return {name: (folder / name).read_bytes() for name in BASES}


@pytest.fixture(scope="module")
def whole(bases, tmp_path_factory):
    """Name of each base that has pictures to times and pixels of all its frames."""
    folder = tmp_path_factory.mktemp("whole")
    for name, data in bases.items():
        (folder / name).write_bytes(data)
    return {name: decode_all(folder / name) for name in BASES if BASES[name] is not None}


def outcome(path, size=None):
    """ "frames" and the clip, or the cause and None; a clip is checked for what any clip must be."""
    faulthandler.dump_traceback_later(SECONDS, exit=True)
    try:
        clip = video.decode_clip(str(path), COUNT, lambda pixels: video.resize(Image.fromarray(pixels), 16))
    except BadSampleError as error:
        assert error.cause in CAUSES and str(path) in error.detail and "\n" not in error.detail
        return error.cause, None
    assert clip.frames.dtype == np.uint8 and clip.frames.shape[1:] == (16, 16, 3)
    assert 1 <= len(clip.frames) <= COUNT and len(clip.times) == len(clip.frames)
    assert np.isfinite([*clip.times, clip.duration]).all() and clip.duration > 0
    assert clip.times[0] >= 0 and all(a < b for a, b in zip(clip.times, clip.times[1:], strict=False))
    return "frames", clip


def flipped(data, rng, start, end):
    data = bytearray(data)
    for place in rng.integers(start, end, rng.integers(1, 16)):
        data[place] ^= 1 << rng.integers(8)
    return bytes(data)


def zeroed(data, rng):
    start, length = rng.integers(len(data)), rng.integers(1, 400)
    return data[:start] + bytes(min(length, len(data) - start)) + data[start + length :]


def shortened(data, rng):
    start, length = rng.integers(len(data)), rng.integers(1, 60)
    return data[:start] + data[start + length :]


DAMAGES = {
    "flipped anywhere": lambda data, rng: flipped(data, rng, 0, len(data)),
    "flipped in front": lambda data, rng: flipped(data, rng, 0, min(len(data), 400)),
    "flipped at the end": lambda data, rng: flipped(data, rng, max(0, len(data) - 900), len(data)),
    "zeros": zeroed,
    "a piece missing": shortened,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_clips(tmp_path, bases, damage):
    """12 files x 6 seeds for each of 5 damages: 360 cases."""
    found = collections.Counter()
    for number, (name, data) in enumerate(bases.items()):
        for seed in range(6):
            path = tmp_path / f"{seed}-{name}"
            path.write_bytes(DAMAGES[damage](data, np.random.default_rng([seed, number])))
            found[outcome(path)[0]] += 1
    assert found.total() == 72 and found["frames"] and found["corrupt"] + found["empty"] and found["no_video"]


@pytest.mark.parametrize("name", [name for name in BASES if BASES[name] and name != "one.mp4"])
def test_of_cut_clips_what_comes_before_the_cut_is_right(tmp_path, bases, whole, name):
    """10 files x 12 cuts: 120 cases."""
    times, pixels = whole[name]
    rng = np.random.default_rng(len(name))
    right = 0
    for seed, share in enumerate(np.linspace(0.02, 0.99, 12)):
        path = tmp_path / f"{seed}-{name}"
        path.write_bytes(bases[name][: int(len(bases[name]) * min(0.999, share + 0.05 * rng.random()))])
        cause, clip = outcome(path)
        if clip is None:
            assert cause in ("corrupt", "empty")
            continue
        intact = len(clip.times) - (name in ("h264.ts", "film.gif"))  # they do not tell that the last frame is cut
        for time, frame in list(zip(clip.times, clip.frames, strict=True))[:intact]:
            expected = pixels[times.index(pytest.approx(time, abs=2e-3))]
            np.testing.assert_array_equal(frame, video.resize(Image.fromarray(expected), 16))
            right += 1
    assert right or name in ("h264.mp4", "uneven.mp4", "odd.mov")  # these have their header behind


def test_clips_by_another_name_and_of_no_bytes(tmp_path, bases, whole):
    """24 cases."""
    names = list(bases)
    for number, (name, data) in enumerate(bases.items()):
        path = tmp_path / f"{name}.{names[number - 3].rpartition('.')[2]}"
        path.write_bytes(data)
        expected = "no_video" if name == "sound.mp4" else "frames"
        cause, clip = outcome(path)
        assert cause == expected
        if clip is not None:
            assert len(clip.frames) == min(COUNT, len(whole[name][1]))
        (tmp_path / name).write_bytes(b"")
        assert outcome(tmp_path / name)[0] == "empty"


SIZES = {  # a mark, how far behind it the size stands, and how it is written
    "odd.mov": (b"rle ", 28, ">HH"),
    "film.gif": (b"GIF89a", 6, "<HH"),
    "mpeg4.avi": (b"strf", 12, "<ii"),
    "vp9.webm": (b"\xb0\x81", 2, ">B"),
}


@pytest.mark.parametrize("side", [8000, 20_000, 65_535])
@pytest.mark.parametrize("name", SIZES)
def test_huge_sizes(tmp_path, bases, name, side):
    """12 cases."""
    mark, offset, form = SIZES[name]
    data = bytearray(bases[name])
    at = data.index(mark) + offset
    struct.pack_into(form, data, at, *([side] * (len(form) - 1)) if form != ">B" else [255])
    (tmp_path / name).write_bytes(bytes(data))
    cause, clip = outcome(tmp_path / name)
    if name in ("odd.mov", "film.gif"):  # the others' frames tell their size themselves, and that counts
        assert cause == "too_large"
    else:
        assert cause == "frames" and len(clip.frames) == COUNT


# --- images ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["png", "jpg", "gif", "webp", "bmp"])
def test_damaged_images(tmp_path, ending):
    """5 formats x 24: 120 cases."""
    picture = Image.fromarray(next(moving(1, (40, 30))))
    picture.save(tmp_path / f"whole.{ending}")
    data = (tmp_path / f"whole.{ending}").read_bytes()
    found = collections.Counter()
    for seed in range(24):
        rng = np.random.default_rng(seed)
        damage = [lambda d, r: d[: r.integers(len(d))], *DAMAGES.values()][seed % 6]
        path = tmp_path / f"{seed}.{ending}"
        path.write_bytes(damage(data, rng))
        faulthandler.dump_traceback_later(SECONDS, exit=True)
        try:
            frames = read_image(str(path), 16)
            assert frames.shape == (1, 16, 16, 3) and frames.dtype == np.uint8
            found["image"] += 1
        except BadSampleError as error:
            assert error.cause in ("corrupt", "too_large")
            found[error.cause] += 1
    assert found.total() == 24 and found["corrupt"]


@pytest.mark.parametrize("side", [60_000, 2**31 - 1])
def test_images_of_huge_sizes(tmp_path, side):
    Image.fromarray(next(moving(1, (40, 30)))).save(tmp_path / "i.png")
    data = bytearray((tmp_path / "i.png").read_bytes())
    struct.pack_into(">II", data, data.index(b"IHDR") + 4, side, side)
    at = data.index(b"IHDR")
    struct.pack_into(">I", data, at + 17, zlib.crc32(data[at : at + 17]))
    (tmp_path / "i.png").write_bytes(bytes(data))
    for read in (lambda path: read_image(path, 16), video.open_image):
        with pytest.raises(BadSampleError) as caught:
            read(str(tmp_path / "i.png"))
        assert caught.value.cause == "too_large"


# --- annotations -------------------------------------------------------------------------------------------------


def good(name):
    turns = [{"from": "human", "value": "<video>\nWhat moves?"}, {"from": "gpt", "value": "A square."}]
    return {"id": "1", "video": name, "conversations": turns}


ESCAPES = [
    "../secret.mp4",
    "a/../../secret.mp4",
    "/etc/passwd",
    "gs://other/secret.mp4",
    "./../secret.mp4",
    "..",
    "a\0b",
]


@pytest.mark.parametrize("seed", range(4))
def test_broken_annotations(tmp_path, bases, seed):
    """4 x (40 broken lines + 7 paths that lead elsewhere) among good ones: 188 cases."""
    (tmp_path / "secret.mp4").write_bytes(bases["h264.mp4"])
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "clip.mp4").write_bytes(bases["h264.mp4"])
    rng = np.random.default_rng(seed)
    line = json.dumps(good("clip.mp4")).encode()
    damages = [lambda d, r: d[: r.integers(1, len(d))], *DAMAGES.values()]
    lines = [damages[number % len(damages)](line, rng).replace(b"\n", b" ") for number in range(40)]
    lines += [json.dumps(good(name)).encode() for name in ESCAPES]
    for place in rng.permutation(len(lines) + 10)[:10]:
        lines.insert(place, line)
    (folder / "records.jsonl").write_bytes(line + b"\n" + b"\n".join(lines) + b"\n")
    records = read_mixture([MixtureEntry(path=str(folder / "records.jsonl"))], seed)
    assert len(records) == 1 + sum(bool(line.strip()) for line in lines)
    found = collections.Counter()
    for index in range(len(records)):
        try:
            media = records[index].media
        except BadSampleError as error:
            found[error.cause] += 1
            continue
        assert all(str(path).startswith(f"{folder}/") and ".." not in path for _, path in media)
        found.update(outcome(path)[0] for _, path in media)
    assert set(found) <= {"bad_record", "frames", *CAUSES}
    assert found["bad_record"] >= len(ESCAPES) + 10 and found["frames"] >= 11
