"""Which frames of a record's clips a sample holds."""

import numpy as np
import pytest
from PIL import Image
from support.media_files import STEP, grey, write_clip
from support.specs import changed, make_spec

from vlvm_jax.data.embedded import words as embedded_words
from vlvm_jax.data.record import Record, Turn
from vlvm_jax.data.sample.loader import SampleLoader


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Records with the same clip of 20 frames, one frame a second, as a file and as a folder, and how to load them."""
    folder = tmp_path_factory.mktemp("world")
    embedded_words.tokenizer().save(str(folder / "tokenizer.json"))
    write_clip(folder / "clip.mp4", grey(20, (16, 16)), fps=1, gop=5)
    (folder / "frames").mkdir()
    for number, pixels in enumerate(grey(20, (16, 16))):
        Image.fromarray(pixels).save(folder / "frames" / f"{number}.png")
    turns = (Turn("<image>\nhow many ?", "two"),)
    records = [
        Record(name, name, (("video", str(folder / name)),), turns, span=span)
        for name in ("clip.mp4", "frames")
        for span in (None, (10.0, 14.0))
    ]
    spec = make_spec(
        length=40,
        frames=4,
        frames_per_video=4,
        image_size=16,
        image_tokens=1,
        video_tokens=(0, 1, 2, 3, 4),
        tokenizer=str(folder),
        chat_template="bare",
    )
    return records, spec


def shown(world, index, **changes):
    """The numbers of the frames in one sample."""
    records, spec = world
    sample = SampleLoader(records, changed(spec, **changes))(index)
    assert not len(sample["bad"])
    return np.rint(sample["frames"].mean(axis=(1, 2, 3)) / STEP).astype(int).tolist()


def test_a_cache_keeps_each_choice_of_frames_by_itself(world):
    """The whole clip and a part of it; and other frames of the same clip for another record."""
    records, spec = world
    for drawn in (False, True):
        changes = {"frame_sampling": "segment", "seed": 0} if drawn else {}
        again = [*records, *records]
        cached = SampleLoader(again, changed(spec, cache_bytes=2**20, **changes))
        plain = SampleLoader(again, changed(spec, **changes))
        frames = [cached.load(index)["frames"] for index in range(len(again))]
        for index, kept in enumerate(frames):
            np.testing.assert_array_equal(kept, plain.load(index)["frames"])
        assert np.array_equal(frames[0], frames[len(records)]) != drawn


@pytest.mark.parametrize("index", [0, 2])
def test_the_whole_clip_and_a_part_of_it(world, index):
    assert shown(world, index) == [2, 7, 12, 17]
    assert shown(world, index + 1) == [10, 11, 12, 13]
    assert shown(world, index + 1, frame_sampling="fps", fps=0.5) == [10, 12]


def test_the_rate_of_a_folder(world):
    assert shown(world, 3, folder_fps=1.4) == [14, 16, 17, 19]  # of the frames shown from the 10th second to the 14th
    assert shown(world, 1, folder_fps=1.4) == [10, 11, 12, 13]  # a file has its own


def test_segments_are_drawn_in_training_alone(world):
    drawn = [shown(world, 0, frame_sampling="segment", seed=seed) for seed in range(8)]
    assert drawn == [shown(world, 0, frame_sampling="segment", seed=seed) for seed in range(8)]
    assert len({tuple(numbers) for numbers in drawn}) > 4
    assert all(number // 5 == part for numbers in drawn for part, number in enumerate(numbers))
    assert shown(world, 0, frame_sampling="segment", seed=0) != shown(world, 2, frame_sampling="segment", seed=0)
    assert shown(world, 0, frame_sampling="segment") == [2, 7, 12, 17]
