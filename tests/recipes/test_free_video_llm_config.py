"""Free Video-LLM's recipe: presets, budgets in tokens, what cannot be."""

import re

import pytest
from etils import epath

from configs.free_video_llm import BUDGETS, PRESETS, get_config
from vlvm_jax.config import Config, build
from vlvm_jax.errors import InputError
from vlvm_jax.evaluation import final
from vlvm_jax.models.params import Model
from vlvm_jax.stop import StopSignal
from vlvm_jax.training import plan, stages

LLAVA = "llava-v1.6-vicuna-7b"
RELEASED = "slow_{}frms_spatial_1d_max_pool_roi{}-middle_{}frms_spatial_1d_max_pool_24x12-fast_{}frms_4x4"


def recipe(arg: str = "") -> Config:
    return build(Config, get_config(arg))


def tokens(arg: str, frames: int | None = None) -> int:
    """Visual tokens of a clip of at least as many frames as are taken."""
    config = recipe(arg)
    asked = config.answers.frames
    assert asked is not None
    return Model(config.model).adapter.num_video_tokens(frames or asked)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_builds(preset):
    config = recipe(preset)
    plan.check_adapter(config)
    assert not config.stages and bool(config.evals) == (preset == "tiny")
    assert config.answers.frames and config.answers.frames > 1
    guided = config.model.adapter.name == "prompt_guided"
    assert guided == (config.data.prompt_tokenizer is not None)
    assert config.name.startswith(f"free-video-llm-{preset}")


# docs/free_video_llm.md. IG-VLM's tokens depend on the frames' shape: tests/data/images/test_grid.py.
@pytest.mark.parametrize(
    ("arg", "expected"),
    [
        (LLAVA, 2648),
        (f"{LLAVA},budget=2648", 693 + 1155 + 800),
        (f"{LLAVA},budget=1826", 513 + 513 + 800),
        (f"{LLAVA},budget=1026", 1026),
        (f"{LLAVA},budget=513", 513),
        (f"{LLAVA},budget=864", 864),
        (f"{LLAVA},budget=uniform_864", 864),
        (f"{LLAVA},budget=1728", 1728),
        (f"{LLAVA},budget=pool_513", 513),
        (f"{LLAVA},roi_layout=corrected", 2648),
        (f"{LLAVA},select=uniform", 2648),
        (f"{LLAVA},frames=20", 693 + 1155 + 320),
        (f"{LLAVA},setting={RELEASED.format(3, 8, 5, 50)}", 2648),
        (f"{LLAVA},setting={RELEASED.format(3, 6, 3, 50)}", 1826),
        (f"{LLAVA},setting={RELEASED.format(3, 10, 3, 0)}", 1728),
        (f"{LLAVA},setting=slowfast-slow_10frms_spatial_1d_max_pool-fast_4x4", 3680),
        ("slowfast-llava-7b", 3680),
        ("freeva-7b", 2304),
        ("freeva-7b,variant=d1", 2304),
        ("freeva-7b,variant=d2", 2304),
        ("freeva-7b,variant=s1", 576),
        # Ours: SmolVLM2's 8 x 8 tokens, of which 2 x 2 frames keep 28 each; 16 at 4.
        ("smolvlm2-256m", 4 * 28 + 16 * 4),
        # InternVL3's 16 x 16: of a view of 8 x 16, 7 x 14 are kept.
        ("internvl3-8b", 4 * 98 + 16 * 4),
        # 8 x 8 patches: pairs make 32, of a view of 4 x 8 alpha 0.8 keeps 4 x 7; one of each of 32 frames.
        ("tiny", 8 * 28 + 32),
        ("tiny,budget=1826", 6 * 18 + 32),
        ("tiny,budget=1026", 6 * 18),
        ("tiny,budget=513", 3 * 18),
        ("tiny,budget=pool_513", 3 * 18),
        ("tiny,budget=864", 3 * 32),
        ("tiny,budget=uniform_864", 3 * 32),
        ("tiny,budget=1728", 6 * 32),
    ],
)
def test_tokens(arg, expected):
    assert tokens(arg) == expected


def test_frames_of_a_shorter_clip():
    assert tokens(LLAVA, 20) == 2168 and tokens(LLAVA, 2) == 2 * 231 + 1155 + 32


@pytest.mark.parametrize("budget", BUDGETS)
def test_budgets_are_called_by_their_tokens(budget):
    assert tokens(f"{LLAVA},budget={budget}") == int(budget.split("_")[-1])


def test_how_the_baselines_see_and_ask():
    slow_fast, grid, freeva = (recipe(preset) for preset in ("slowfast-llava-7b", "ig-vlm-7b", "freeva-7b"))
    assert slow_fast.answers.frames == 50 and slow_fast.data.frame_fit == "squash"
    assert grid.data.clips == "grid" and grid.data.image_layout == "anyres" and grid.answers.frames == 6
    assert grid.data.frame_sampling == "segment_start" and grid.answers.append_question_mark
    assert freeva.answers.frames == 8 and freeva.data.frame_fit == "pad" and not freeva.answers.prefix
    assert slow_fast.answers.prefix == grid.answers.prefix == recipe(LLAVA).answers.prefix == "Answer: In the video,"


@pytest.mark.parametrize(
    ("arg", "message"),
    [
        ("llava", "no preset 'llava'; there are tiny, "),
        ("token=3", "unknown key 'token'"),
        (f"{LLAVA},budget=3000", "budget='3000'; there are 2648, 1826"),
        ("freeva-7b,variant=d3", "variant='d3'; there are d1, d2, s1"),
        ("tiny,base=somewhere", "base has no effect on tiny, which takes budget, roi_layout, select, seed"),
        ("tiny,clip=somewhere", "clip has no effect on tiny"),
        ("tiny,frames=8", "frames has no effect on tiny"),
        (f"tiny,setting={RELEASED.format(3, 8, 5, 50)}", "setting has no effect on tiny"),
        ("tiny,variant=d1", "variant has no effect on tiny"),
        ("tiny,stages=image", "unknown key 'stages' in 'stages=image'; there are base, clip, budget"),
        ("tiny,scale=0.1", "unknown key 'scale' in 'scale=0.1'; there are base, clip, budget"),
        ("tiny,seed=-1", "seed=-1 is not in [0, 2**32)"),
        ("tiny,seed=one", "seed='one' is not a int"),
        ("slowfast-llava-7b,budget=513", "budget has no effect on slowfast-llava-7b, which takes base, frames"),
        ("freeva-7b,clip=x", "clip has no effect on freeva-7b"),
        (f"{LLAVA},seed=1", f"seed has no effect on {LLAVA}"),
        (f"{LLAVA},budget=513,setting={RELEASED.format(3, 8, 5, 50)}", "setting and budget both say how many tokens"),
        (f"{LLAVA},setting=slow", "setting 'slow': expected slow_<n>frms_"),
        (f"{LLAVA},base=nowhere", "--config: base: 'nowhere' is neither a directory"),
        (f"{LLAVA},clip=nowhere", "--config: clip: 'nowhere' is neither a directory"),
    ],
)
def test_what_cannot_be(arg, message):
    with pytest.raises(InputError, match=re.escape(message)) as error:
        get_config(arg)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("arg", "message"),
    [
        (f"{LLAVA},roi_layout=square", "config.model.adapter.options.roi_layout: .*'released' or 'corrected'"),
        (f"{LLAVA},select=best", "config.model.adapter.options.frame_select: .*'prompt'"),
    ],
)
def test_what_the_adapter_refuses(arg, message):
    with pytest.raises(InputError, match=message):
        _ = Model(recipe(arg).model).adapter


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data.prompt_length": 13}, "config.data.prompt_length: 13, but the text tower .* has 12 positions"),
        ({"evals.0.pack": True}, "config: searches: .* a row holds one question; set pack to False"),
        ({"model.adapter.options.clip.projection_dim": 48}, "config.model.adapter.options.clip.projection_dim"),
        ({"model.vision.image_size": 96}, "config.model.vision.image_size"),
        ({"model.adapter.name": "frames", "model.adapter.options": {}}, "'frames' .*shuffled_prompt"),
    ],
)
def test_what_does_not_fit_the_models_in_the_package(change, message, tmp_path, monkeypatch):
    monkeypatch.setenv("VLVM_JAX_DATA", str(tmp_path / "data"))
    config = get_config("tiny")
    config.data.embedded.heldout_searches = 4
    for key, value in change.items():
        *folders, last = key.split(".")
        place = config
        for name in folders:
            place = place[int(name)] if name.isdigit() else place[name]
        place[last] = value
    with pytest.raises(InputError, match=message) as error:
        stages.run(build(Config, config), epath.Path(tmp_path / "run"), StopSignal(), final.evaluate)
    assert "\n" not in str(error.value) and not (tmp_path / "run").exists()


def test_every_option_of_the_adapter_can_be_overridden():
    for preset in ("tiny", LLAVA):
        options = get_config(preset).model.adapter.options
        for key in ("frame_feature", "dedupe_frames", "roi_box", "patch_post_ln", "clip_towers", "score_dtype"):
            assert key in options
        assert options.fast_path.select == "prompt" and options.prompt_path.roi_alpha == 0.8
    assert get_config("slowfast-llava-7b").model.adapter.options.fast_path.grid == [4, 4]


def test_a_seed_is_of_the_clips_alone():
    first, other = get_config("tiny"), get_config("tiny,seed=1")
    assert first.data.embedded.seed == 0 and other.data.embedded.seed == 1
    other.data.embedded.seed = 0
    assert first == other


@pytest.mark.parametrize("preset", [preset for preset in PRESETS if preset != "tiny"])
def test_what_trains_nothing_is_not_trained(preset, tmp_path):
    with pytest.raises(InputError, match=r"trains nothing; .*vlvm_jax.generate or vlvm_jax.evaluate"):
        stages.run(recipe(preset), epath.Path(tmp_path / "run"), StopSignal(), final.evaluate)
    assert not (tmp_path / "run").exists()
