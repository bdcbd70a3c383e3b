"""What evaluation does to records and clips: questions asked alone, blank clips, shuffled frames."""

import numpy as np
import pytest
from PIL import Image
from support.specs import changed, make_spec

from vlvm_jax.data.embedded import shapes
from vlvm_jax.data.embedded import words as embedded_words
from vlvm_jax.data.record import Record, Turn
from vlvm_jax.data.sample.loader import SampleLoader
from vlvm_jax.data.sample.turns import split_turns

FRAMES = 8


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A clip whose frame i has brightness 25 * i, twice, and an image."""
    folder = tmp_path_factory.mktemp("world")
    embedded_words.tokenizer().save(str(folder / "tokenizer.json"))
    shades = np.arange(FRAMES, dtype=np.uint8) * 25
    shapes.write_mp4(folder / "c.mp4", np.broadcast_to(shades[:, None, None, None], (FRAMES, 16, 16, 3)), 8)
    Image.fromarray(np.full((16, 16, 3), 77, np.uint8)).save(folder / "i.png")
    spec = make_spec(
        length=60, frames=20, frames_per_video=FRAMES, image_size=8, image_tokens=3,
        video_tokens=tuple(range(FRAMES + 1)), tokenizer=str(folder), chat_template="bare",
    )  # fmt: skip
    clip, image = ("video", str(folder / "c.mp4")), ("image", str(folder / "i.png"))
    records = [
        Record("a", "n: record 0", (clip,), (Turn("<image>\nhow many ?", "two"),)),
        Record("b", "n: record 1", (clip,), (Turn("<image>\nhow many ?", "two"),)),
        Record("c", "n: record 2", (image, clip), (Turn("<image> or <image> first ?", "two"),)),
    ]
    return records, spec


def load(world, control, index):
    records, spec = world
    return SampleLoader(records, changed(spec, control=control)).load(index)


def order(frames):
    return np.rint(frames.mean(axis=(1, 2, 3)) / 25).astype(int).tolist()


def assert_only_frames_differ(one, other):
    for key in one:
        if key != "frames":
            np.testing.assert_array_equal(one[key], other[key], err_msg=key)


def test_without_a_control_frames_are_in_order(world):
    assert order(load(world, None, 0)["frames"]) == list(range(FRAMES))


def test_blank_video_keeps_everything_but_the_pixels_of_clips(world):
    real, blank = load(world, None, 2), load(world, "blank_video", 2)
    assert_only_frames_differ(real, blank)
    assert (blank["frames"][1:] == 128).all()
    np.testing.assert_array_equal(blank["frames"][0], real["frames"][0])


def test_shuffled_frames_keeps_everything_but_the_order(world):
    real, shuffled = load(world, None, 2), load(world, "shuffled_frames", 2)
    assert_only_frames_differ(real, shuffled)
    np.testing.assert_array_equal(shuffled["frames"][0], real["frames"][0])
    permutation = order(shuffled["frames"][1:])
    assert sorted(permutation) == list(range(FRAMES)) and permutation != list(range(FRAMES))
    np.testing.assert_array_equal(shuffled["frames"][1:], real["frames"][1:][permutation])


def test_shuffling_is_fixed_for_a_record_and_differs_between_records(world):
    first = order(load(world, "shuffled_frames", 0)["frames"])
    assert order(load(world, "shuffled_frames", 0)["frames"]) == first
    assert order(load(world, "shuffled_frames", 1)["frames"]) != first


# --- questions asked alone ---------------------------------------------------------------------------------------


def test_split_turns_asks_each_question_over_all_media():
    clip = Record(
        "7", "n: record 7", (("video", "v"),), (Turn("<image>\nq", "a", "x"), Turn("r", "b", "y"), Turn("s", "c"))
    )
    text = Record("8", "n: record 8", (), (Turn("q", "a"), Turn("r", "b")))
    alone = split_turns([clip, text])
    assert [r.id for r in alone] == ["7/0", "7/1", "7/2", "8/0", "8/1"]
    assert [r.turns for r in alone[:3]] == [
        (Turn("<image>\nq", "a", "x"),),
        (Turn("<image>\nr", "b", "y"),),
        (Turn("<image>\ns", "c"),),
    ]
    assert [r.turns for r in alone[3:]] == [(Turn("q", "a"),), (Turn("r", "b"),)]
    assert all(r.media == clip.media and r.source == clip.source for r in alone[:3])


def test_split_turns_with_media_spread_over_the_turns(world):
    records, spec = world
    media = (records[2].media[0],) * 2
    spread = Record("9", "n", media, (Turn("<image>\nhow many ?", "two"), Turn("<image>\ncircle color ?", "red")))
    alone = split_turns([spread])
    assert [r.turns[0].question for r in alone] == [
        "<image>\n<image>\nhow many ?",
        "<image>\n<image>\ncircle color ?",
    ]
    for index in range(2):
        sample = SampleLoader(alone, spec).load(index)
        assert sample["media_mask"].sum() == 2 * spec.image_tokens


def test_split_turns_leaves_placeholders_where_the_question_has_them_all():
    pair = Record("1", "n", (("image", "a"), ("image", "b")), (Turn("<image> or <image> ?", "x"),))
    assert split_turns([pair])[0].turns == pair.turns
