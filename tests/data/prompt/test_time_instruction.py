"""The sentence with a clip's times: where it stands, that its times are the clip's, and that it is counted."""

import numpy as np
import pytest
from support.hf_checkpoints import checkpoint
from support.specs import changed, make_spec
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from vlvm_jax.data.embedded import shapes
from vlvm_jax.data.faults import BadSampleError
from vlvm_jax.data.media import frames
from vlvm_jax.data.prompt import time_instruction
from vlvm_jax.data.record import Record, Turn
from vlvm_jax.data.sample.loader import SampleLoader, check_lengths
from vlvm_jax.data.sample.processor import load_processor
from vlvm_jax.errors import InputError

FRAMES = 3


def letters():
    """Every byte is a token."""
    made = Tokenizer(
        models.BPE(vocab={c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, merges=[])
    )
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(["</s>"])
    return made


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Records of a clip of 2.5 seconds at 4 frames a second, and of it twice between words."""
    folder = tmp_path_factory.mktemp("clips")
    letters().save(str(folder / "tokenizer.json"))
    shapes.write_mp4(folder / "c.mp4", np.full((10, 32, 32, 3), 99, np.uint8), 4)
    clip = ("video", str(folder / "c.mp4"))
    records = [
        Record("a", "n: 0", (clip,), (Turn("<image>\nwhat ?", "a cat"), Turn("why ?", "so"))),
        Record("b", "n: 1", (clip, clip), (Turn("is <image> like <image>?", "no"),)),
    ]
    spec = make_spec(
        length=700, frames=10, frames_per_video=FRAMES, image_size=32, image_tokens=2, video_tokens=(0, 1, 2, 3),
        tokenizer=str(folder), chat_template="bare", time_instruction=True,
    )  # fmt: skip
    return records, spec


def sentence(path):
    clip = frames.decode_clip(path, FRAMES, lambda pixels: pixels)
    assert clip.duration == pytest.approx(2.5) and len(clip.times) == FRAMES
    return time_instruction.write(clip.times, clip.duration)


def test_it_follows_every_clip_on_a_line_of_its_own(world):
    records, spec = world
    tokenizer, note = letters(), sentence(records[0].media[0][1])
    assert "at 0.25s,1.25s,2.00s" in note
    for record, expected in zip(
        records,
        [
            f"USER: ***\n{note}\nwhat ? ASSISTANT: a cat</s>USER: why ? ASSISTANT: so</s>",
            f"USER: is ***\n{note}\n like ***\n{note}\n? ASSISTANT: no</s>",
        ],
        strict=True,
    ):
        sample = SampleLoader([record], spec).load(0)
        star = tokenizer.token_to_id("*")
        ids = np.where(sample["media_mask"], star, sample["token_ids"])
        assert tokenizer.decode(ids, skip_special_tokens=False) == expected
        assert sample["frames"].shape[0] == FRAMES * len(record.media)
    learned = SampleLoader(records, spec).load(0)
    said = tokenizer.decode(learned["token_ids"][learned["loss_mask"]], skip_special_tokens=False)
    assert said == "a cat</s>so</s>"


def test_without_the_option_nothing_is_said(world):
    records, spec = world
    quiet = SampleLoader(records, changed(spec, time_instruction=False)).load(0)
    assert len(quiet["token_ids"]) == len(SampleLoader(records, spec).load(0)["token_ids"]) - len(
        "\n" + sentence(records[0].media[0][1])
    )


def test_it_is_counted(world):
    records, spec = world
    loader = SampleLoader(records[:1], spec)
    largest = len(loader.encode(records[0], loader.largest(records[0])).ids)
    whole = len(loader.load(0)["token_ids"])
    assert whole < largest < whole + 12, "the sentence is estimated at stamps of two digits"
    with pytest.raises(BadSampleError) as caught:
        SampleLoader(records[:1], changed(spec, length=whole - 1)).load(0)
    assert caught.value.cause == "too_long" and f"3 visual + {whole - 3} text tokens" in caught.value.detail
    tight = SampleLoader(records[:1], changed(spec, length=largest - 1))
    with pytest.raises(InputError, match=r"config\.stages\.x\.length: 1 of 1 records probed do not fit"):
        check_lengths(tight, "config.stages.x", 0.0)
    check_lengths(SampleLoader(records[:1], changed(spec, length=largest)), "config.stages.x", 0.0)


@pytest.mark.parametrize("family", ["llava", "llava_next_video", "llava_onevision", "idefics3"])
def test_a_checkpoints_processor_says_it_in_training_and_in_generation(world, tmp_path, family):
    records, spec = world
    folder = str(checkpoint(tmp_path, family))
    own = load_processor(folder)
    counts = tuple(own.video_tokens(n) for n in range(FRAMES + 1))
    if family == "idefics3":
        counts = tuple(n * own.own_tokens for n in range(FRAMES + 1))
    spec = changed(
        spec, processor=folder, tokenizer=folder, chat_template="checkpoint", image_tokens=own.image_tokens,
        video_tokens=counts,
    )  # fmt: skip
    processor = load_processor(folder, video_tokens=counts, time_instruction=True)
    path = records[0].media[0][1]
    note = sentence(path)
    trained = SampleLoader(records, spec).load(0)
    shown = processor.tokenizer.decode(trained["token_ids"][~trained["media_mask"]])
    assert shown.count(note) == 1 and f"\n{note}\nwhat ?" in shown
    message = {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "what ?"}]}
    asked = processor.sample([message], videos=[processor.read_clip(path, FRAMES)])
    start = int(np.flatnonzero(trained["loss_mask"])[0])
    np.testing.assert_array_equal(trained["token_ids"][:start], asked["token_ids"][:start])
    without = load_processor(folder, video_tokens=counts).sample([message], videos=[processor.read_clip(path, FRAMES)])
    assert len(without["token_ids"]) < len(asked["token_ids"])


def test_smolvlm_has_its_own(tmp_path):
    with pytest.raises(InputError) as caught:
        load_processor(str(checkpoint(tmp_path, "smolvlm")), time_instruction=True)
    assert str(caught.value) == (
        "config.data.time_instruction: smolvlm writes every frame's time already; leave it off"
    )


@pytest.mark.parametrize(
    ("times", "duration", "expected"),
    [
        (
            (0.0, 1.02, 61.238),
            63.5,
            "This video is 63.50 seconds long and 3 frames of it are shown, at 0.00s,1.02s,61.24s. "
            "Answer what is asked about it.",
        ),
        (
            (0.5,),
            None,
            "This video is 0.50 seconds long and 1 frame of it is shown, at 0.50s. Answer what is asked about it.",
        ),
    ],
)
def test_the_sentence(times, duration, expected):
    assert time_instruction.write(times, duration) == expected
