"""Samples for systems that look at a clip by its question: ids for CLIP, clips as one image, frames as squares."""

import numpy as np
import pytest
from absl import flags
from PIL import Image
from support.hf_checkpoints import PINPOINTS, checkpoint
from support.media_files import STEP, grey, write_clip
from support.specs import changed, make_spec
from tokenizers import processors

from vlvm_jax.config import DataConfig, build
from vlvm_jax.data.batch.dataset import empty_batch, make_dataset
from vlvm_jax.data.batch.skipped import SkipLog
from vlvm_jax.data.embedded import words as embedded_words
from vlvm_jax.data.images import anyres, grid
from vlvm_jax.data.images.squares import to_square
from vlvm_jax.data.media import frames as video
from vlvm_jax.data.prompt.answers import render_question
from vlvm_jax.data.record import Record, Turn
from vlvm_jax.data.sample.loader import SampleLoader, check_lengths
from vlvm_jax.errors import InputError

P = 6
WIDTH, HEIGHT = 48, 32


@pytest.fixture(autouse=True)
def parsed_flags():
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A clip of 20 grey frames, one of 3, an image, a tokenizer, and one that ends texts as CLIP's does."""
    folder = tmp_path_factory.mktemp("world")
    embedded_words.tokenizer().save(str(folder / "tokenizer.json"))
    clip = embedded_words.tokenizer()
    start, end = clip.token_to_id("<s>"), clip.token_to_id("</s>")
    clip.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", start), ("</s>", end)]
    )
    clip.enable_padding(pad_id=0, pad_token="<pad>")
    clip.save(str(folder / "clip.json"))
    write_clip(folder / "long.mp4", grey(20, (WIDTH, HEIGHT)), fps=10)
    write_clip(folder / "short.mp4", grey(3, (WIDTH, HEIGHT)), fps=10)
    gradient = np.tile(np.linspace(0, 255, WIDTH).astype(np.uint8)[None, :, None], (HEIGHT, 1, 3))
    Image.fromarray(gradient).save(folder / "image.png")
    return folder


@pytest.fixture
def spec(folder):
    return make_spec(
        length=60, frames=4, frames_per_video=4, image_size=16, image_tokens=1, video_tokens=(0, 1, 2, 3, 4),
        tokenizer=str(folder), chat_template="bare",
    )  # fmt: skip


def record(folder, name, *questions, options=()):
    kind = "image" if name.endswith("png") else "video"
    asked = [f"<image>\n{questions[0]}", *questions[1:]]
    turns = tuple(Turn(question, "two", options=options) for question in asked)
    return Record(name, f"file: {name}", ((kind, str(folder / name)),), turns)


def guided(spec, folder, **changes):
    return changed(spec, prompt_tokenizer=str(folder / "clip.json"), prompt_length=P, **changes)


def words(ids):
    tokenizer = embedded_words.tokenizer()
    return [tokenizer.id_to_token(int(token)) for token in ids]


# --- the question for CLIP ---------------------------------------------------------------------------------------


def test_the_first_question_is_what_clip_reads(folder, spec):
    loader = SampleLoader([record(folder, "long.mp4", "circle color ?", "how many ?")], guided(spec, folder))
    sample = loader(0)
    assert words(sample["prompt_ids"]) == ["<s>", "circle", "color", "?", "</s>", "<pad>"]
    assert sample["prompt_ids"].dtype == np.int32 and not len(sample["prompt_cut"])
    assert "prompt_ids" not in SampleLoader(loader.records, spec)(0)


def test_neither_template_nor_options_reach_clip_unless_asked(folder, spec):
    asked = [record(folder, "long.mp4", "circle color ?", options=("red", "blue"))]
    plain = guided(spec, folder, prompt_template="{question} USER: {options}")
    sample = SampleLoader(asked, plain)(0)
    assert words(sample["prompt_ids"]) == ["<s>", "circle", "color", "?", "</s>", "<pad>"]
    wider = changed(plain, clip_text="question_and_options", prompt_length=9)
    assert words(SampleLoader(asked, wider)(0)["prompt_ids"])[4:8] == ["<unk>", "red", "<unk>", "blue"]
    shown = [token for token in words(sample["token_ids"]) if token != "<unk>"]
    assert shown[-9:] == ["circle", "color", "?", "USER:", "red", "blue", "ASSISTANT:", "two", "</s>"]


def test_every_question_stands_in_the_template(folder, spec):
    asked = record(folder, "long.mp4", "circle color ?", "how many ?")
    loader = SampleLoader([asked], changed(spec, prompt_template="first {question} finally ?"))
    shown = words(loader.encode(asked, [2]).ids)
    assert shown[0] == "USER:" and len(set(shown[1:3])) == 1
    text = " ".join(shown[3:])
    expected = [render_question(q, (), "first {question} <unk> ?") for q in ("circle color ?", "how many ?")]
    assert text == f"{expected[0]} ASSISTANT: two </s> USER: {expected[1]} ASSISTANT: two </s>"


@pytest.mark.parametrize("workers", [0, 1])
def test_rows_carry_the_ids_of_their_sample(folder, spec, workers):
    asked = [record(folder, "long.mp4", question) for question in ("circle color ?", "how many ?", "red shape ?")]
    made = guided(spec, folder)
    batches = list(
        make_dataset(asked, made, rows=2, pack=False, skip_log=SkipLog(asked, 0), seed=None, workers=workers)
    )
    assert [batch["prompt_ids"].shape for batch in batches] == [(2, P)] * 2
    found = [row for batch in batches for row in batch["prompt_ids"]]
    for ids, question in zip(found, ("circle color ?", "how many ?", "red shape ?"), strict=False):
        assert words(ids)[1:4] == question.split()[:3]
    assert not found[3].any()  # the row that fills up the last batch
    assert {key: value.shape[1:] for key, value in empty_batch(made, 2).items()} == {
        key: value.shape[1:] for key, value in batches[0].items()
    }
    assert not any(key.startswith("prompt_") and key != "prompt_ids" for key in batches[0])


def test_packed_rows_are_refused(folder, spec):
    asked = [record(folder, "long.mp4", "how many ?")]
    with pytest.raises(InputError, match=r"config\.pack: .* a row holds one question; set pack to False"):
        make_dataset(asked, guided(spec, folder), rows=1, pack=True, skip_log=SkipLog(asked, 0), seed=None, workers=0)


def test_cut_questions_are_counted_and_said_once(folder, spec, caplog):
    import vlvm_jax.weights.param_store  # noqa: F401  it silences Orbax's lines in the same log

    asked = [record(folder, "long.mp4", question) for question in ("how many ?", "red " * 9, "blue " * 9)]
    log = SkipLog(asked, 0)
    made = make_dataset(asked, guided(spec, folder), rows=3, pack=False, skip_log=log, seed=None, workers=0)
    (batch,) = made
    assert log.cut_prompts == {1, 2} and log.summary() == {}
    said = [record.getMessage() for record in caplog.records if record.name == "absl"]
    assert said == ["file: long.mp4: prompt over CLIP's length of 6 tokens: truncated (others are counted)"]
    assert words(batch["prompt_ids"][1]) == ["<s>", "red", "red", "red", "red", "</s>"]


# --- a clip as one image -----------------------------------------------------------------------------------------


def test_a_clip_is_one_image_of_its_frames(folder, spec):
    made = changed(spec, clips="grid", frames_per_video=6, frames=6, image_size=96)
    made = changed(made, frame_fit="squash", frame_sampling="segment_start")
    sample = SampleLoader([record(folder, "long.mp4", "how many ?")], made)(0)
    assert sample["frames"].shape == (1, 96, 96, 3) and sample["is_video"].tolist() == [False]
    assert sample["media_mask"].sum() == 1
    tiles = sample["frames"][0].reshape(3, 32, 2, 48, 3).mean(axis=(1, 3, 4)).reshape(-1)
    assert np.rint(tiles / STEP).tolist() == [0, 3, 6, 9, 12, 15]


def test_a_short_clip_leaves_tiles_white(folder, spec):
    made = changed(spec, clips="grid", frames_per_video=6, frames=6, image_size=96, frame_fit="squash")
    sample = SampleLoader([record(folder, "short.mp4", "how many ?")], made)(0)
    tiles = sample["frames"][0].reshape(3, 32, 2, 48, 3).mean(axis=(1, 3, 4)).reshape(-1)
    assert (tiles[3:] > 250).all() and np.rint(tiles[:3] / STEP).tolist() == [0, 1, 2]


def test_controls_change_the_frames_of_the_grid(folder, spec):
    made = changed(spec, clips="grid", frame_fit="squash", image_size=32, cache_bytes=1 << 20)
    asked = [record(folder, "long.mp4", "how many ?")]

    def tiles(control):
        frames = SampleLoader(asked, changed(made, control=control))(0)["frames"]
        return np.rint(frames[0].reshape(2, 16, 2, 16, 3).mean(axis=(1, 3, 4)).reshape(-1)).astype(int).tolist()

    assert set(tiles("blank_video")) == {128}
    assert tiles("shuffled_frames") != tiles(None) and sorted(tiles("shuffled_frames")) == tiles(None)


@pytest.fixture(scope="module")
def llava_next(tmp_path_factory):
    return str(checkpoint(tmp_path_factory.mktemp("llava_next"), "llava_next"))


def next_spec(directory, **changes):
    settings = {
        "length": 700, "frames": 10, "frames_per_video": 6, "image_size": 32, "image_tokens": 17,
        "video_tokens": tuple(16 * n for n in range(7)), "tokenizer": directory, "chat_template": "checkpoint",
        "processor": directory, "image_layout": "anyres", "clips": "grid",
    }  # fmt: skip
    return make_spec(**{**settings, **changes})


def test_the_grid_is_cut_into_tiles_like_any_image(folder, llava_next):
    asked = [record(folder, "long.mp4", "how many ?")]
    loader = SampleLoader(asked, next_spec(llava_next))
    sample = loader(0)
    assert not len(sample["bad"])
    size = grid.size(HEIGHT, WIDTH, 6)
    assert sample["media_mask"].sum() == len(anyres.tiled(size, PINPOINTS, 32, 4))
    assert len(sample["frames"]) == anyres.num_tiles(size, PINPOINTS, 32)
    frames = video.decode_frames(str(folder / "long.mp4"), 6).frames
    expected = loader.processor.images([grid.image(frames, 6)])[0]
    np.testing.assert_array_equal(sample["frames"], expected.frames)
    assert loader.largest(asked[0]) == [expected.expansion]
    check_lengths(loader, "config.stages.a", 0.0)
    with pytest.raises(InputError, match=r"config\.stages\.a\.length: 1 of 1 records probed do not fit"):
        check_lengths(SampleLoader(asked, next_spec(llava_next, length=20)), "config.stages.a", 0.0)


def test_an_image_and_a_grid_in_one_sample(folder, llava_next):
    media = (("image", str(folder / "image.png")), ("video", str(folder / "long.mp4")))
    both = Record("both", "file: both", media, (Turn("<image>\n<image>\nhow many ?", "two"),))
    for directory, spec in ((llava_next, next_spec(llava_next)), (None, None)):
        if directory is None:
            spec = make_spec(
                length=60, frames=4, frames_per_video=4, image_size=16, image_tokens=1, video_tokens=(0, 1, 2, 3, 4),
                tokenizer=str(folder), chat_template="bare", clips="grid",
            )  # fmt: skip
        sample = SampleLoader([both], spec)(0)
        assert not len(sample["bad"]), sample["bad"].tobytes()
        assert not sample["is_video"].any() and set(sample["media"].tolist()) == {1, 2}


# --- squares -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fit", ["auto", "crop", "squash", "pad"])
@pytest.mark.parametrize("name", ["long.mp4", "image.png"])
def test_pictures_become_squares_without_a_processor(folder, spec, fit, name):
    made = changed(spec, frame_fit=fit, image_mean=(0.5, 0.25, 0.75))
    sample = SampleLoader([record(folder, name, "how many ?")], made)(0)
    if name == "image.png":
        pictures = [video.open_image(str(folder / name))]
    else:
        pictures = video.decode_frames(str(folder / name), 4).frames
    expected = [to_square(picture, 16, fit, (0.5, 0.25, 0.75)) for picture in pictures]
    np.testing.assert_array_equal(sample["frames"], np.stack(expected))


@pytest.mark.parametrize("fit", ["crop", "squash", "pad"])
def test_pictures_become_squares_with_a_processor(folder, llava_next, fit):
    asked = [record(folder, name, "how many ?") for name in ("long.mp4", "image.png")]
    made = next_spec(llava_next, frame_fit=fit, clips="frames", image_layout="single")
    loader = SampleLoader(asked, made)
    pictures = video.decode_frames(str(folder / "long.mp4"), 6).frames, [video.open_image(asked[1].media[0][1])]
    for index, shown in enumerate(pictures):
        expected = [to_square(picture, 32, fit, loader.processor.image_mean) for picture in shown]
        np.testing.assert_array_equal(loader(index)["frames"], np.stack(expected))
    tiles = SampleLoader(asked, changed(made, image_layout="anyres"))(1)["frames"]
    auto = SampleLoader(asked, changed(made, image_layout="anyres", frame_fit="auto"))(1)["frames"]
    np.testing.assert_array_equal(tiles, auto)  # what is cut into tiles is cut as the checkpoint says


def test_a_frame_that_comes_twice(folder, spec):
    made = changed(spec, frame_sampling="segment_mid", frames=3, frames_per_video=3)

    def shown(**changes):
        sample = SampleLoader([record(folder, "short.mp4", "how many ?")], changed(made, **changes))(0)
        return np.rint(sample["frames"].mean(axis=(1, 2, 3)) / STEP).astype(int).tolist()

    assert shown() == [0, 1, 1]  # parts of 2/3 of a frame: edges 0, 1, 1, 2
    assert shown(short_video="identity") == [0, 1, 2]
    assert shown(frame_sampling="video_chatgpt") == [0, 1]


def test_a_grid_has_no_times(folder):
    with pytest.raises(InputError, match=r"clips 'grid' shows an image, whose frames have no times"):
        build(DataConfig, {"tokenizer": "t", "clips": "grid", "time_instruction": True}, "config.data")
