"""Recipes that let the question pick frames, over a LLaVA and a CLIP on disk, both tiny and random; and the picture."""

import dataclasses
import io

import numpy as np
import pytest
from PIL import Image
from support import tiny_checkpoints as tiny

from configs.free_video_llm import get_config
from vlvm_jax.config import Config, MeshConfig, build
from vlvm_jax.errors import InputError
from vlvm_jax.inference import picture
from vlvm_jax.inference.answering import Answering, Decoding, Request
from vlvm_jax.inference.loading import load

SHORT = Decoding(max_new_tokens=12)
FRAMES = 8
GUIDED = "slow_3frms_spatial_1d_max_pool_roi6-middle_2frms_spatial_1d_max_pool_24x12-fast_8frms_2x2"
WHOLE = "slow_0frms_concat_roi10-middle_{0}frms_concat_24x12-fast_0frms_4x4"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("guided")
    tiny.checkpoint(root / "llava", "llava_next", "llama_like")
    tiny.clip_model(root / "clip", size=48)  # whose 6 x 6 patches score the 4 x 4 of the model's tower
    tiny.clip(root / "clip.mp4", frames=30)
    tiny.picture(root / "picture.png")
    return root


def recipe(folder, setting: str = GUIDED, preset: str = "llava-v1.6-vicuna-7b", frames: int = FRAMES, **keys) -> Config:
    if preset.startswith("llava"):
        keys = {"clip": folder / "clip", "setting": setting, **keys}
    given = ",".join(f"{key}={value}" for key, value in keys.items())
    config = get_config(f"{preset},base={folder / 'llava'},frames={frames},{given}")
    config.model.dtype = "float32"
    config.answers.prompt_template = "question"  # whose words are many tokens for this tokenizer
    return build(Config, config)


def loaded(folder, config: Config) -> Answering:
    made = load(str(folder / "llava"), config=config, mesh=MeshConfig())
    made.prompts.decode = lambda ids: " ".join(map(str, ids))
    return made


@pytest.fixture(scope="module")
def answering(folder):
    return loaded(folder, recipe(folder))


def about(folder, question: str = "red circle color ?", *names: str) -> Request:
    names = names or ("clip.mp4",)
    media = tuple(("video" if name.endswith("mp4") else "image", str(folder / name)) for name in names)
    return Request("1", media, question)


def ask(answering, request):
    (answer,) = answering.answer([request], SHORT)
    return answer


def test_a_recipe_takes_sizes_words_and_weights_from_both_checkpoints(answering, folder):
    spec = answering.prompts.spec
    assert spec.data.prompt_length == 12 and spec.data.prompt_tokenizer == str(folder / "clip")
    assert spec.frames_per_video == FRAMES and spec.data.frame_fit == "squash"
    clip = answering.engine.model.config.adapter.options["clip"]
    assert clip["vision"]["image_size"] == 48 and clip["projection_dim"] == 8
    text = answering.prompts.prompt(about(folder)).text
    assert text == "<s>USER: <image>\nred circle color ?\nASSISTANT:\nAnswer: In the video,".replace("image", "video")


def test_answers_say_what_was_picked(answering, folder):
    request = about(folder)
    answer = ask(answering, request)
    found = answer.picked
    # Pairs of 4 x 4 make 8, of a view of 2 x 4 alpha 0.6 keeps 2 x 3.
    assert (found["prompt_tokens"], found["uniform_tokens"], found["fast_tokens"]) == (18, 12, 32)
    assert answer.visual_tokens == 18 + 12 + 32
    best = np.sort(np.argsort(-np.array(found["frame_scores"]), kind="stable")[:3])
    assert found["prompt_idx"] == best.tolist() and found["uniform_idx"] == [0, 4]
    assert found["fast_idx"] == list(range(FRAMES)) and len(found["frame_scores"]) == FRAMES
    other = ask(answering, about(folder, "blue square shape ?"))
    assert other.picked["frame_scores"] != found["frame_scores"] and other.visual_tokens == answer.visual_tokens
    assert other.seconds_vision < 0.1 * answer.seconds_vision  # the clip was seen with the first question


def test_text_alone(answering, folder):
    answer = ask(answering, Request("1", (), "red circle color ?"))
    assert answer.visual_tokens == 0 and answer.new_tokens == 12


def test_another_text_may_guide(answering, folder):
    request = about(folder)
    guided = ask(answering, dataclasses.replace(request, scoring_text="blue square shape ?"))
    assert guided.picked == ask(answering, about(folder, "blue square shape ?")).picked
    assert guided.prompt_tokens == ask(answering, request).prompt_tokens


def test_a_long_question_is_cut_for_clip_alone(answering, folder):
    long = dataclasses.replace(about(folder, "red circle color " * 10), id="long")
    answer = ask(answering, long)
    assert "long" in answering.prompts.cut and "1" not in answering.prompts.cut
    assert answer.prompt_tokens > ask(answering, about(folder)).prompt_tokens + 20


@pytest.mark.parametrize("frames", [3, 4])
def test_all_frames_uncropped_are_the_plain_adapter(folder, frames):
    """No crop, every frame uniform, no fast path: the answer of the adapter `frames` to the same frames."""
    guided = recipe(folder, WHOLE.format(frames), frames=frames)
    adapter = guided.model.adapter.model_copy(
        update={"name": "frames", "options": type(guided.model.adapter.options)()}
    )
    start = guided.model.init_from.model_copy(update={"clip": None})
    plain = guided.model_copy(
        update={
            "model": guided.model.model_copy(update={"adapter": adapter, "init_from": start}),
            "data": guided.data.model_copy(update={"prompt_tokenizer": None}),
        }
    )
    answers = [ask(loaded(folder, config), about(folder)) for config in (guided, plain)]
    assert answers[0].text == answers[1].text and answers[0].visual_tokens == answers[1].visual_tokens == 16 * frames
    assert answers[0].new_tokens == SHORT.max_new_tokens or answers[0].finish == "stop"
    assert answers[1].picked is None


@pytest.mark.parametrize(
    ("preset", "frames", "visual"), [("slowfast-llava-7b", 8, 10 * 8 + 8 * 16), ("freeva-7b", 8, 8 * 8)]
)
def test_baselines_answer_without_a_clip(folder, preset, frames, visual):
    answering = loaded(folder, recipe(folder, preset=preset, frames=frames))
    answer = ask(answering, about(folder))
    assert answer.visual_tokens == visual and "frame_scores" not in answer.picked
    sheet(answering, about(folder))


def test_a_grid_of_frames_is_an_image_in_tiles(folder):
    answering = loaded(folder, recipe(folder, preset="ig-vlm-7b", frames=6))
    answer = ask(answering, about(folder))
    assert answer.picked is None and answer.visual_tokens > 16
    assert "??" in answering.prompts.prompt(about(folder)).text
    sheet(answering, about(folder))


def test_the_recipe_s_own_checkpoint_answers_without_a_flag(folder, answering):
    assert ask(load(None, config=recipe(folder), mesh=MeshConfig()), about(folder)).picked == (
        ask(answering, about(folder)).picked
    )


def test_a_folder_that_is_no_clip_is_named(folder):
    with pytest.raises(InputError, match=r"--config: clip: .*llava is not a whole CLIP"):
        recipe(folder, clip=folder / "llava")


# --- the picture -----------------------------------------------------------------------------------------------------


def sheet(answering, request) -> np.ndarray:
    png = picture.contact_sheet(answering, request, ask(answering, request))
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def test_outlines_are_what_paths_keep(answering, folder):
    """Patches that a picked frame has more of than the fast path alone gives; in the released layout no rectangle."""
    request = about(folder)
    retention, found = answering.retention(request), ask(answering, request).picked
    assert retention.weights.shape == (FRAMES, 16)
    np.testing.assert_allclose(sum(retention.path_weights.values()), retention.weights, atol=1e-6)
    kept = picture.outlined(retention)
    assert list(kept) == ["prompt", "uniform"]  # the fast path leaves nothing out
    more = retention.weights > retention.path_weights["fast"] + 1e-6
    np.testing.assert_array_equal(kept["prompt"] | kept["uniform"], more)
    for name in kept:
        taken = np.isin(np.arange(FRAMES), found[f"{name}_idx"])
        assert (kept[name].sum(1) == np.where(taken, 12, 0)).all()  # 6 pairs
    first = kept["prompt"][found["prompt_idx"][0]].reshape(4, 4)
    rows, columns = np.nonzero(first)
    assert np.ptp(rows) + 1 == 4 and (np.ptp(rows) + 1) * (np.ptp(columns) + 1) > 12


def test_outline_of_a_set():
    patches = np.zeros((3, 3), bool)
    patches[0, :2] = patches[1, 1] = True
    edges = {tuple(map(tuple, np.round(edge * 3).astype(int))) for edge in picture.outline(patches.reshape(-1))}
    assert edges == {
        ((0, 0), (1, 0)), ((1, 0), (2, 0)), ((0, 1), (1, 1)), ((1, 2), (2, 2)),
        ((0, 0), (0, 1)), ((1, 1), (1, 2)), ((2, 0), (2, 1)), ((2, 1), (2, 2)),
    }  # fmt: skip
    assert not len(picture.outline(np.zeros(9, bool))) and len(picture.outline(np.ones(9, bool))) == 12


def test_words_of_the_picture(answering, folder):
    request = about(folder)
    retention, answer = answering.retention(request), ask(answering, request)
    text = answer.prompt_tokens - 62
    assert picture.budget(retention.media, answer, 512) == (
        f"prompt 3 x 6 + uniform 2 x 6 + fast 8 x 4 = 62 visual + {text} text = {62 + text} of 512"
    )
    labels = picture.labels(retention.media, answer.picked)
    assert len(labels) == FRAMES
    for number, label in enumerate(labels):
        time = retention.media[0].times[number]
        paths = [name for name in ("prompt", "uniform", "fast") if number in answer.picked[f"{name}_idx"]]
        assert label == f"{time:.2f} s, score {answer.picked['frame_scores'][number]:.3f}\n{' + '.join(paths)}"
    picked = {"uniform_idx": [0, 0, 1, -1], "uniform_tokens": 7}
    short = dataclasses.replace(retention.media[0], frames=retention.media[0].frames[:3], times=(0.0, 0.5, 1.0))
    assert picture.labels([short], picked) == ["0.00 s\nuniform x 2", "0.50 s\nuniform", "1.00 s\n"]
    pooled = dataclasses.replace(answer, picked=picked, visual_tokens=7, prompt_tokens=10)
    assert picture.budget([short], pooled, 512) == "uniform 3 frames' 7 = 7 visual + 3 text = 10 of 512"
    plain = dataclasses.replace(answer, picked=None, visual_tokens=48, prompt_tokens=60)
    assert picture.budget([short], plain, 512) == "3 frames: 48 visual + 12 text = 60 of 512"
    assert picture.labels([short], {}) == ["0.00 s", "0.50 s", "1.00 s"]


def test_an_image_beside_the_clip_is_not_among_its_frames(answering, folder):
    request = about(folder, "is <image> in <video> ?", "picture.png", "clip.mp4")
    retention, answer = answering.retention(request), ask(answering, request)
    assert [medium.kind for medium in retention.media] == ["image", "video"]
    labels = picture.labels(retention.media, answer.picked)
    assert labels[0] == "image\n" and labels[1].endswith("uniform + fast") and len(labels) == FRAMES + 1
    assert "+ images 16 = 78 visual" in picture.budget(retention.media, answer, 512)
    assert list(picture.outlined(retention)) == ["prompt", "uniform"]
    assert not picture.outlined(retention)["uniform"][0].any()


def test_the_sheet(answering, folder):
    drawn = sheet(answering, about(folder))
    assert drawn.shape[1] > 3 * drawn.shape[0]  # eight in a row
    orange, cyan = (
        (np.abs(drawn.astype(int) - colour).sum(-1) < 12).sum() for colour in ((255, 127, 14), (23, 190, 207))
    )
    assert orange > 300 and cyan > 150
