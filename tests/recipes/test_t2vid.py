"""T2Vid's recipe: mixes and arms, presets, a run in which pages and clips share batches, resumed exactly."""

import json
import re
import shutil

import pytest

from configs import t2vid
from vlvm_jax.config import Config, build, to_json
from vlvm_jax.errors import InputError
from vlvm_jax.models.params import Model
from vlvm_jax.recipes._common import tiny_data

DATA = tiny_data(train_stories=40, heldout_stories=4, heldout_long_stories=4, train_long_texts=30)["embedded"]


@pytest.mark.parametrize(
    ("samples", "parts"),
    [
        (30_000, (10_000, 10_000, 10_000)),
        (60_000, (20_000, 20_000, 20_000)),
        (100_000, (33_000, 33_000, 34_000)),
        (1800, (600, 600, 600)),
        (10, (3, 3, 4)),
    ],
)
def test_two_videos_to_a_text_and_a_caption_to_an_instruction(samples, parts):
    assert t2vid.shares(samples) == parts


def mixed(arg):
    config = build(Config, t2vid.get_config(arg))
    return config, {entry.path.rsplit("/", 1)[1]: (entry.count, entry.pages) for entry in config.stages[-1].data}


@pytest.mark.parametrize("preset", t2vid.PRESETS[1:])
def test_the_papers_mix(preset):
    config, parts = mixed(preset)
    counts = {name: count for name, (count, _) in parts.items()}
    assert counts == {
        "sharegemini.json": 10_000,
        "VideoInstruct100K.json": 10_000,
        "long_alpaca.jsonl": 5000,
        "long_qlora.jsonl": 5000,
    }
    (stage,) = config.stages
    assert {rate for _, rate in stage.trainable} == {5e-6} and stage.schedule == "log_warmup_cosine"
    assert (stage.final_lr_ratio, stage.weight_decay, stage.beta2, stage.loss_on) == (0.1, 0.01, 0.999, "answer")
    each = {"idefics3-8b": 169, "smolvlm2-2.2b": 81}.get(preset, 256)
    assert Model(config.model).adapter.num_video_tokens(24) == 24 * each
    assert parts["long_alpaca.jsonl"][1]["max_pages"] == (44 if each == 256 else 65)
    assert stage.frames * each + 512 <= stage.length <= config.model.decoder.max_position_embeddings


def test_pages_have_to_fit_a_row():
    _, parts = mixed("internvl3-8b,length=17664")
    assert parts["long_alpaca.jsonl"][1]["max_pages"] == 65
    with pytest.raises(InputError, match="length=1200 has no room for a page of 256 tokens"):
        t2vid.get_config("internvl3-8b,length=1200")


@pytest.mark.parametrize(("arm", "samples"), [("video_only", 600), ("full_video", 4000)])
def test_arms_of_videos_alone(arm, samples):
    _, parts = mixed(f"tiny,arm={arm}")
    assert sum(count for count, _ in parts.values()) == samples and not any(pages for _, pages in parts.values())


def test_arms_differ_in_their_data_alone():
    def without_data(arm):
        values = to_json(build(Config, t2vid.get_config(f"tiny,arm={arm}")))
        values["stages"][-1].pop("data")
        return {**values, "name": ""}

    arms = [without_data(arm) for arm in ("hybrid", "video_only", "pure_text", "full_video")]
    assert all(arm == arms[0] for arm in arms)
    (hybrid, _), (text, _) = (mixed(f"tiny,arm={arm}")[1]["train_long_texts.jsonl"] for arm in ("hybrid", "pure_text"))
    assert hybrid == text == 200
    shown = [mixed(f"tiny,arm={arm}")[1]["train_long_texts.jsonl"][1] for arm in ("hybrid", "pure_text")]
    assert [pages["shown_as"] for pages in shown] == ["video", "text"]
    asked, trained = (build(Config, t2vid.get_config(f"tiny,arm={arm}")) for arm in ("zero_shot", "hybrid"))
    assert asked.stages == () and (asked.model, asked.evals) == (trained.model, trained.evals)


@pytest.mark.parametrize(
    ("arg", "message"),
    [
        ("tiny,arm=all", "arm='all'; there are hybrid, video_only, pure_text, full_video, zero_shot"),
        ("idefics3-8b,arm=zero_shot", "arm=zero_shot trains nothing; ask the base itself: python -m vlvm_jax.evaluate"),
        ("idefics3-8b,samples=2", "samples=2 are too few for a mix of videos and 2 files of texts"),
        ("minicpm", "no preset 'minicpm'; there are tiny, idefics3-8b, smolvlm2-2.2b"),
    ],
)
def test_what_it_cannot_be(arg, message):
    with pytest.raises(InputError, match=re.escape(message)):
        t2vid.get_config(arg)


# --- a run -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("stories")


def small(root, monkeypatch, **changes):
    monkeypatch.setenv("VLVM_JAX_DATA", str(root))
    config = t2vid.get_config("tiny,samples=30")
    config.data.embedded = DATA
    config.data.workers = 0
    config.tensorboard = False
    config.checkpoint.save_every = 2
    for key, value in {"batch_size": 8, "steps": 5, "epochs": None, **changes}.items():
        config.stages[-1][key] = value
    return build(Config, config)


def run(config, workdir):
    from etils import epath

    from vlvm_jax.evaluation import final
    from vlvm_jax.stop import StopSignal
    from vlvm_jax.training import stages

    return stages.run(config, epath.Path(workdir), StopSignal(), final.evaluate)


def losses(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {(line["stage"], line["step"]): line["loss"] for line in lines if "loss" in line}


@pytest.mark.slow
def test_pages_and_clips_in_one_run_which_resumes_exactly(tmp_path, root, monkeypatch):
    config = small(root, monkeypatch)
    summary = run(config, tmp_path / "run")
    assert [stage["compilations"] for stage in summary["stages"]] == [1]
    assert set(summary["eval"]) == {"short", "long"}
    whole = losses(tmp_path / "run")
    mix = json.loads((tmp_path / "run" / "video" / "mix.json").read_text())
    drawn = {part["source"].rsplit("/", 1)[1]: part["records"] for part in mix["drawn"]}
    assert {name: len(records) for name, records in drawn.items()} == {
        "train_stories_captions.json": 10, "train_stories.json": 10, "train_long_texts.jsonl": 10
    }  # fmt: skip
    assert all(len(set(records)) == 10 for records in drawn.values())
    shutil.rmtree(tmp_path / "run" / "video" / "checkpoints" / "5")
    (tmp_path / "run" / "video" / "result.json").unlink()
    run(config, tmp_path / "run")
    assert losses(tmp_path / "run") == whole
    assert json.loads((tmp_path / "run" / "video" / "mix.json").read_text()) == mix


def test_packed_epochs_are_steps(root, tmp_path, monkeypatch):
    from etils import epath

    from vlvm_jax.stop import StopSignal
    from vlvm_jax.training import plan

    config = small(root, monkeypatch, steps=None, epochs=2.0)
    (prepared,) = plan.make(config, epath.Path(tmp_path), StopSignal()).stages
    assert len(prepared.records) == 30
    assert 30 * 2 / 8 / 12 < prepared.num_steps < 30 * 2 / 8  # several samples a row, fewer than a dozen
