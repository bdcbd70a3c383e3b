"""Animated WebP, PNG and AVIF are clips like any other."""

import numpy as np
import pytest
from PIL import Image
from support.media_files import moving

from vlvm_jax.data.faults import BadSampleError
from vlvm_jax.data.media import animation
from vlvm_jax.data.media import frames as video
from vlvm_jax.data.record import Record, Turn
from vlvm_jax.data.tools.check import Checker
from vlvm_jax.data.tools.record_bytes import record_bytes
from vlvm_jax.data.tools.reencode import Target

NAMES = ("c.webp", "c.png", "c.avif")
DURATIONS = (100, 300, 100, 2000)  # ms
STARTS = (0.0, 0.1, 0.4, 0.5)
COLOURS = ("red", "lime", "blue", "white")


def save(path, frames, durations=DURATIONS, **options):
    exact = {".webp": {"lossless": True}, ".avif": {"quality": 100}}.get(path.suffix, {})
    options = {"save_all": True, "append_images": frames[1:], "duration": list(durations), **exact, **options}
    frames[0].save(path, **options)
    return str(path)


def coloured(path, size=(40, 30), durations=DURATIONS):
    return save(path, [Image.new("RGB", size, colour) for colour in COLOURS], durations)


def shown(frames):
    """Which of the colours each frame has."""
    palette = np.array([Image.new("RGB", (1, 1), colour).getpixel((0, 0)) for colour in COLOURS])
    return [int(np.abs(palette - frame.mean((0, 1))).sum(1).argmin()) for frame in frames]


@pytest.mark.parametrize("name", NAMES)
def test_frames_and_times(tmp_path, name):
    taken = video.decode_frames(coloured(tmp_path / name), 8)
    assert shown(taken.frames) == [0, 1, 2, 3]
    assert taken.times == pytest.approx(STARTS)
    assert taken.frames[0].shape == (30, 40, 3)


@pytest.mark.parametrize("name", NAMES)
def test_a_part_of_it(tmp_path, name):
    taken = video.decode_frames(coloured(tmp_path / name), 8, span=(0.1, 0.45))
    assert shown(taken.frames) == [1, 2]


def test_webp_frames_are_exact_and_odd_sizes_are_kept(tmp_path):
    frames = list(moving(4, (41, 31)))
    taken = video.decode_frames(save(tmp_path / "c.webp", [Image.fromarray(frame) for frame in frames]), 8)
    for found, expected in zip(taken.frames, frames, strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("name", ["c.webp", "c.png"])
def test_transparent_frames_are_blended_as_stored_and_stand_on_white(tmp_path, name):
    """Only a part of each frame differs from the one before, and is stored."""
    frames, expected = [], []
    for number in range(4):
        image = Image.new("RGBA", (40, 30), (0, 0, 0, 0))
        image.paste((200, 0, 50 * number, 255), (8 * number, 4, 8 * number + 10, 20))
        image.paste((0, 0, 255, 128), (0, 24, 40, 30))
        frames.append(image)
        expected.append(Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB"))
    taken = video.decode_frames(save(tmp_path / name, frames), 8)
    for found, whole in zip(taken.frames, expected, strict=True):
        np.testing.assert_array_equal(found, np.asarray(whole))


@pytest.mark.parametrize("disposal", [0, 1, 2])
@pytest.mark.parametrize("blend", [0, 1])
def test_disposal_and_blending_of_png(tmp_path, disposal, blend):
    frames = [Image.new("RGBA", (40, 30), (60 * i, 0, 0, 255 if i % 2 == 0 else 100)) for i in range(4)]
    path = save(tmp_path / "c.png", frames, disposal=disposal, blend=blend)
    taken = video.decode_frames(path, 8)
    with Image.open(path) as image:
        for number, found in enumerate(taken.frames):
            image.seek(number)
            rgba = image.convert("RGBA")
            whole = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
            np.testing.assert_array_equal(found, np.asarray(whole))


def test_a_png_s_picture_for_who_cannot_play_it_is_no_frame(tmp_path):
    frames = [Image.new("RGB", (40, 30), colour) for colour in COLOURS]
    path = save(tmp_path / "c.png", frames, DURATIONS[:3], default_image=True)
    assert shown(video.decode_frames(path, 8).frames) == [1, 2, 3]
    assert (np.asarray(video.open_image(path)) == (255, 0, 0)).all()


@pytest.mark.parametrize("name", NAMES)
def test_check_and_prepare_take_it(tmp_path, name):
    path = coloured(tmp_path / name)
    record = Record("1", "notes.json: 0", (("video", path),), (Turn("?", "!"),))
    assert Checker([record], None)(0).cause == ""
    stored = record_bytes(record, Target())[1][0]
    assert stored.data == (tmp_path / name).read_bytes()
    for target, expected, times in (
        (Target(size=16), [0, 1, 2, 3], STARTS),
        (Target(fps=2), [0, 3], (0, 0.5)),
        (Target(fps=1), [0, 3], (0, 0.5)),
    ):
        (tmp_path / "made.mp4").write_bytes(record_bytes(record, target)[1][0].data)
        made = video.decode_frames(str(tmp_path / "made.mp4"), 8)
        assert shown(made.frames) == expected and made.times == pytest.approx(times, abs=1e-4)


def test_a_duration_of_0_is_a_tenth_of_a_second_as_in_browsers(tmp_path):
    path = coloured(tmp_path / "c.webp", durations=(0, 0, 50, 0))
    assert video.decode_frames(path, 8).times == pytest.approx([0, 0.1, 0.2, 0.25])


@pytest.mark.parametrize("name", ["c.webp", "c.png", "c.jpg", "c.avif"])
def test_a_still_image_is_a_clip_of_one_frame(tmp_path, name):
    Image.new("RGB", (40, 30), "lime").save(tmp_path / name)
    assert shown(video.decode_frames(str(tmp_path / name), 8).frames) == [1]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("share", [0.05, 0.5, 0.8, 0.97])
def test_of_a_cut_animation_what_is_there_is_right(tmp_path, name, share):
    path = tmp_path / name
    frames = list(moving(4, (64, 48)))
    save(path, [Image.fromarray(frame) for frame in frames])
    whole = video.decode_frames(str(path), 8).frames
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    try:
        found = video.decode_frames(str(path), 8).frames
    except BadSampleError as error:
        assert error.cause == "corrupt" and str(path) in error.detail
    else:
        for ours, theirs in zip(found, whole, strict=False):
            np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(("limit", "most"), [("MAX_PIXELS", 40 * 30 - 1), ("MAX_ANIMATION", 4 * 40 * 30 - 1)])
@pytest.mark.parametrize("name", NAMES)
def test_what_is_not_worth_a_sample_is_refused_by_its_header(tmp_path, monkeypatch, name, limit, most):
    path = coloured(tmp_path / name)
    monkeypatch.setattr(animation, limit, most)
    monkeypatch.setattr(animation, "_lossless", lambda *_: pytest.fail("memory was taken"))
    with pytest.raises(BadSampleError) as caught:
        video.decode_frames(path, 8)
    assert caught.value.cause == "too_large" and path in caught.value.detail


def test_an_avif_that_pillow_does_not_read_is_named(tmp_path, monkeypatch):
    path = coloured(tmp_path / "c.avif")

    def unknown(file):
        raise Image.UnidentifiedImageError("cannot identify image file")

    monkeypatch.setattr(animation.Image, "open", unknown)
    with pytest.raises(BadSampleError, match=r"c\.avif: an animated AVIF that this Pillow does not read"):
        video.decode_frames(path, 8)
