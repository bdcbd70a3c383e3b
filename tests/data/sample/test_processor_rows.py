"""Rows with a checkpoint's processor: tiles as frames, slots that count along a packed row, and what is checked."""

import dataclasses
import json
from collections import Counter

import numpy as np
import pytest
from absl import flags
from PIL import Image
from support.hf_checkpoints import checkpoint
from support.specs import changed, make_spec

from vlvm_jax import config as config_lib
from vlvm_jax.config import DataConfig
from vlvm_jax.data.batch.dataset import make_dataset
from vlvm_jax.data.batch.skipped import SkipLog
from vlvm_jax.data.embedded import shapes
from vlvm_jax.data.record import Record, Turn
from vlvm_jax.data.sample.loader import SampleLoader, check_lengths
from vlvm_jax.data.sample.processor import load_processor
from vlvm_jax.errors import InputError

GRID, SLOTS = 16, 17


@pytest.fixture(autouse=True)
def parsed_flags():
    """Grain's worker processes read absl flags, which a command has parsed by then."""
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """Text, images of several shapes, pairs and clips."""
    folder = tmp_path_factory.mktemp("media")
    rng = np.random.default_rng(0)
    made = []
    for index, (height, width) in enumerate([(50, 70), (20, 130), (64, 64), (131, 23), (30, 40), (70, 70)]):
        media = []
        for medium in range(1 + index % 2):
            path = folder / f"{index}-{medium}.png"
            Image.fromarray(rng.integers(0, 256, (height + medium, width, 3), dtype=np.uint8)).save(path)
            media.append(("image", str(path)))
        if index in (2, 5):
            clip = rng.integers(0, 256, (3, 48, 64, 3), dtype=np.uint8)
            shapes.write_mp4(folder / f"{index}.mp4", clip, 2)
            media.append(("video", str(folder / f"{index}.mp4")))
        question = "<image>\n" * len(media) + "what is it ?"
        made.append(Record(str(index), f"n: record {index}", tuple(media), (Turn(question, "a cat"),)))
    text = Record("text", "n: text", (), (Turn("how many ?", "two"),))
    return [made[0], text, *made[1:], text]


@pytest.fixture(scope="module")
def specs(tmp_path_factory):
    made = {}

    def spec(family, layout="anyres", **changes):
        if family not in made:
            made[family] = str(checkpoint(tmp_path_factory.mktemp(family), family))
        per_frame = 4 if family != "llava_next" else GRID
        ending = int(family == "llava_onevision")
        counts = {"image_tokens": 4, "video_tokens": (0, 4, 8, 12)}
        if family != "smolvlm":
            video = tuple(n * per_frame + ending for n in range(4))
            counts = {"image_tokens": GRID + (layout == "anyres"), "video_tokens": video}
        return make_spec(
            **{
                "length": 700,
                "frames": 60,
                "frames_per_video": 3,
                "image_size": 32,
                "tokenizer": made[family],
                "chat_template": "checkpoint",
                "processor": made[family],
                "image_layout": layout,
                **counts,
                **changes,
            }
        )

    return spec


def batches(records, spec, **options):
    options = {"rows": 2, "pack": True, "seed": None, "workers": 0, **options}
    return list(make_dataset(records, spec, skip_log=SkipLog(records, 0.0), **options))


# --- rows --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "workers"), [("llava_next", 0), ("llava_onevision", 0), ("llava_onevision", 1)])
def test_slots_are_those_of_each_samples_own_frames(records, specs, family, workers):
    """Whatever stands before a sample in its row, its tokens read the frames that it reads alone."""
    spec = specs(family)
    loader = SampleLoader(records, spec)
    seen = Counter()
    for batch in batches(records, spec, workers=workers):
        taps = 4 if family == "llava_onevision" else 1
        assert batch["visual_index"].shape == batch["visual_weight"].shape == (2, spec.length, taps)
        assert (batch["visual_index"].dtype, batch["visual_weight"].dtype) == (np.int32, np.float32)
        for row in range(2):
            frames = batch["frames"][row]
            index, weight = batch["visual_index"][row], batch["visual_weight"][row]
            segments, mask = batch["segment_ids"][row], batch["media_mask"][row]
            assert not index[~mask].any() and not weight[~mask].any()
            for segment in range(1, segments.max() + 1):
                here = segments == segment
                record = int(batch["record"][row][here][0])
                alone = loader.load(record)
                np.testing.assert_array_equal(mask[here], alone["media_mask"])
                np.testing.assert_array_equal(weight[here], alone["visual_weight"])
                places = index[here][mask[here]], alone["visual_index"][alone["media_mask"]]
                np.testing.assert_array_equal(places[0] % SLOTS, places[1] % SLOTS)
                np.testing.assert_array_equal(frames[places[0] // SLOTS], alone["frames"][places[1] // SLOTS])
                seen[record] += 1
    assert seen == Counter(range(len(records)))
    assert max(int(batch["segment_ids"].max()) for batch in batches(records, spec)) > 2, "nothing was packed"


@pytest.mark.parametrize("family", ["llava", "llava_next", "llava_onevision", "smolvlm"])
@pytest.mark.parametrize("layout", ["single", "anyres"])
def test_samples_are_the_processors(records, specs, family, layout):
    spec = specs(family, layout)
    processor = load_processor(
        spec.data.processor, image_layout=layout, image_tokens=spec.image_tokens, video_tokens=spec.video_tokens
    )
    for index, record in enumerate(records):
        sample = SampleLoader(records, spec).load(index)
        clips = [processor.read_clip(path, 3) for kind, path in record.media if kind == "video"]
        pictures = [path for kind, path in record.media if kind == "image"]
        turn = {"role": "user", "content": record.turns[0].question}
        for _ in clips:  # clips are the last media of their records
            head, _, tail = turn["content"].rpartition("<image>")
            turn["content"] = f"{head}<video>{tail}"
        asked = processor.sample([turn], pictures, clips)
        for key in ("frames", "media", "is_video"):
            np.testing.assert_array_equal(sample[key], asked[key])
        start = np.flatnonzero(sample["loss_mask"])[0]
        np.testing.assert_array_equal(sample["token_ids"][:start], asked["token_ids"][:start])
        assert sample["media_mask"].sum() == asked["media_mask"].sum()
        assert ("visual_index" in sample) == (layout == "anyres" and family in ("llava_next", "llava_onevision"))


def test_controls_change_the_clips_pixels_alone(records, specs):
    spec = specs("smolvlm")
    index = next(i for i, record in enumerate(records) if record.kind == "video")
    real = SampleLoader(records, spec).load(index)
    blank = SampleLoader(records, changed(spec, control="blank_video")).load(index)
    assert (blank["frames"][real["is_video"]] == 128).all()
    for key in real.keys() - {"frames"}:
        np.testing.assert_array_equal(real[key], blank[key])
    np.testing.assert_array_equal(real["frames"][~real["is_video"]], blank["frames"][~real["is_video"]])


# --- what is checked ---------------------------------------------------------------------------------------------


def test_lengths_are_probed_with_the_images_own_sizes(records, specs):
    """A tiled image takes more tokens than a single one; its header says how many."""
    tiled, single = specs("llava_next"), specs("llava_next", "single")
    longest = max(len(SampleLoader(records, tiled).load(i)["token_ids"]) for i in range(len(records)))
    check_lengths(SampleLoader(records, dataclasses.replace(tiled, length=longest)), "x", 0.0)
    with pytest.raises(InputError, match=r"x\.length: 1 of 8 records probed do not fit; n: record \d: \d+ visual"):
        check_lengths(SampleLoader(records, dataclasses.replace(tiled, length=longest - 1)), "x", 0.0)
    check_lengths(SampleLoader(records, dataclasses.replace(single, length=longest - 1)), "x", 0.0)


def test_a_missing_image_is_no_fault_of_the_length(records, specs):
    gone = dataclasses.replace(records[0], media=(("image", "/nowhere.png"),))
    check_lengths(SampleLoader([gone, *records[1:]], specs("llava_next")), "x", 0.0)
    note = json.loads(SampleLoader([gone], specs("llava_next"))(0)["bad"].tobytes())
    assert (note["cause"], note["detail"]) == ("missing", "/nowhere.png")


def test_too_many_tiles_for_a_row(records, specs):
    note = json.loads(SampleLoader(records, specs("smolvlm", frames=4))(0)["bad"].tobytes())
    assert (note["cause"], note["detail"]) == ("too_many_frames", "n: record 0: 13 frames for a row of 4")


def test_the_processor_of_another_tower(records, specs):
    with pytest.raises(InputError, match=r"prepares images of 32 pixels; config\.model\.vision\.image_size is 48"):
        SampleLoader(records, specs("llava", image_size=48)).load(0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"image_layout": "anyres"},
            r"config\.data: image_layout 'anyres' needs processor, the directory of a checkpoint",
        ),
        ({"chat_template": "checkpoint"}, r"config\.data: chat_template 'checkpoint' needs processor"),
        ({"image_layout": "tiles", "processor": "d"}, r"config\.data\.image_layout: "),
    ],
)
def test_settings(values, message):
    with pytest.raises(InputError, match=message):
        config_lib.build(DataConfig, {"tokenizer": "t", **values}, "config.data")
    config_lib.build(DataConfig, {"tokenizer": "t", "processor": "d", "image_layout": "anyres"}, "config.data")
