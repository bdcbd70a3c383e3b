"""The samples in the picture of `data check`: what is shown is what training would learn from."""

import dataclasses
import io

import numpy as np
import pytest
from PIL import Image
from support import tiny_checkpoints as tiny
from support import user_folder
from support.recipes import small
from support.specs import make_spec

from vlvm_jax.data.embedded import shapes
from vlvm_jax.data.embedded.shapes import ShapesOptions
from vlvm_jax.data.sample.loader import SampleLoader
from vlvm_jax.data.tools import check_report, check_samples
from vlvm_jax.data.tools.check import Finding
from vlvm_jax.data.tools.prepare import open_records
from vlvm_jax.samples import sample_spec


@pytest.fixture
def world(embedded):
    """Records and how the small recipe's last stage makes samples of them."""
    config = small()
    folder = shapes.folder(ShapesOptions(**config.data.embedded), embedded)
    data = config.data.model_copy(update={"tokenizer": f"{folder}/tokenizer.json"})
    spec = sample_spec(config.model_copy(update={"data": data}), config.stages[-1])
    return open_records([f"{folder}/heldout_clips.json", f"{folder}/heldout_arrangements.json"]), spec


def test_frames_prompt_and_learned_tokens(world):
    records, spec = world
    (shown,) = check_samples.show_samples(records, spec, [0])
    sample = SampleLoader(records, spec).load(0)
    assert np.array_equal(shown.frames, sample["frames"]) and len(shown.frames) == 8
    assert shown.labels[0].endswith(" s") and len(set(shown.labels)) == 8
    assert f"{len(sample['token_ids'])} tokens, 32 of them visual, {sample['loss_mask'].sum()} learned" in shown.title
    learned = [text.strip() for text, kind in shown.parts if kind == "learned"]
    assert learned == [f"{turn.answer} </s>" for turn in records[0].turns]
    prompt = "".join(text for text, kind in shown.parts if kind == "prompt")
    for turn in records[0].turns:
        assert turn.question.replace("<image>", "").strip() in prompt
    assert [text for text, kind in shown.parts if kind == "visual"] == ["[32 visual]"]


def test_a_checkpoints_template_and_special_tokens(tmp_path):
    folder = tiny.checkpoint(tmp_path / "model", "llava_onevision")
    records = open_records([str(user_folder.good(tmp_path / "clips"))])
    spec = make_spec(
        length=2000, frames=8, frames_per_video=4, image_size=32, image_tokens=17, video_tokens=(0, 5, 9, 13, 17),
        tokenizer=str(folder), processor=str(folder), chat_template="checkpoint",
    )  # fmt: skip
    number = next(number for number in range(len(records)) if records[number].kind == "video")
    (shown,) = check_samples.show_samples(records, spec, [number])
    sample = SampleLoader(records, spec).load(number)
    text = "".join(text for text, kind in shown.parts if kind != "visual")
    assert "<|im_start|>" in text or "<" in text
    learned = "".join(text for text, kind in shown.parts if kind == "learned")
    assert all(turn.answer in learned for turn in records[number].turns)
    assert sum(kind == "visual" for _, kind in shown.parts) >= 1
    assert np.array_equal(shown.frames, sample["frames"])


def finding(index: int, kind: str = "video", cause: str = "") -> Finding:
    return Finding(index, kind, cause=cause)


def test_a_few_usable_records_of_every_kind():
    findings = [finding(n) for n in range(50)] + [finding(50, "image"), finding(51, "text"), finding(52, cause="bad")]
    assert check_samples.choose(findings) == [0, 49, 50, 51]
    assert check_samples.choose(findings[:50]) == [0, 16, 32, 49]
    assert check_samples.choose([finding(0, cause="corrupt")]) == []


def test_the_learned_tokens_are_marked_in_the_picture(world, tmp_path):
    records, spec = world
    (shown,) = check_samples.show_samples(records, spec, [0])
    nothing = dataclasses.replace(shown, parts=tuple((text, "prompt") for text, _ in shown.parts))
    green = (191, 232, 197)

    def marked(sample) -> int:
        pixels = np.asarray(Image.open(io.BytesIO(check_samples.draw([sample])[0])).convert("RGB"))
        return int((pixels == green).all(-1).sum())

    assert marked(shown) > marked(nothing) + 1000  # of which the legend has its own
    samples, _ = check_samples.draw([shown])
    summary = {"checked": 1, "records": 1, "usable": 1, "causes": {}, "length": 80}
    check_report.draw([], summary, tmp_path / "all.png", samples)
    assert Image.open(tmp_path / "all.png").height > Image.open(io.BytesIO(samples)).height + 500


def test_long_texts_are_cut_around_what_is_learned(world):
    records, spec = world
    (shown,) = check_samples.show_samples(records, spec, [0])
    long = (
        ("word " * 4000 + "$x_1$ 汉字\n" + "y" * 3000, "prompt"),
        ("the answer", "learned"),
        ("w " * 9000, "prompt"),
    )
    png, _ = check_samples.draw([dataclasses.replace(shown, parts=long)])
    opened = Image.open(io.BytesIO(png))
    assert opened.height < 900
    pixels = np.asarray(opened.convert("RGB"))
    assert (pixels == (191, 232, 197)).all(-1).sum() > 1500


def test_other_scripts_are_drawn_or_spelt_out_and_said(world, recwarn):
    records, spec = world
    (shown,) = check_samples.show_samples(records, spec, [0])
    foreign = (("how many \u0e01 or $x ?\n", "prompt"), ("\U00012000 three", "learned"))  # Thai, cuneiform
    png, note = check_samples.draw([dataclasses.replace(shown, parts=foreign)])
    assert Image.open(io.BytesIO(png)).size[1] < 800
    assert "\U00012000" in note and "code points" in note
    assert not [warning for warning in recwarn if "Glyph" in str(warning.message)]
