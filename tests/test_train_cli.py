"""Bad input to the command ends in one line that says what is wrong, exit code 2, no traceback."""

import json
import re
import shutil
import sys

import pytest
from support import small as recipe
from support.recipes import small, train

from configs import ftfv, red_villm
from vlvm_jax import cli
from vlvm_jax.config import Config, build, to_json
from vlvm_jax.data.embedded import shapes
from vlvm_jax.errors import InputError


@pytest.mark.parametrize(
    ("arg", "extra", "message"),
    [
        ("huge", (), "no preset 'huge'; there are tiny, llava-1.5-7b, vicuna-7b, smolvlm2-256m"),
        ("tiny,colour=red", (), "unknown key 'colour'"),
        ("tiny,tokens=many", (), "tokens='many' is not a int"),
        ("tiny,video_strategy=S9", (), "video_strategy='S9'"),
        ("tiny", ("--config.model.decoder.hidden_siz=8",), "hidden_siz"),
        ("tiny", ("--config.seed=x",), "seed"),
        ("tiny", ("--nonsense=1",), "nonsense"),
        ("vicuna-7b", (), "openai/clip-vit-large-patch14 is not in the cache"),
        ("tiny", ("--config.mesh.data=3",), "does not divide the 1 devices here"),
    ],
)
def test_command_line_faults(tmp_path, data_root, arg, extra, message):
    done = train(tmp_path / "run", data_root, *extra, arg=arg) if arg == "tiny" else train_ftfv(tmp_path, arg)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.strip().count("\n") == 0


def train_ftfv(tmp_path, arg):
    """The recipe itself, where neither a network nor a cache gives its weights."""
    import subprocess

    from support.recipes import ROOT, environment

    nowhere = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub")}
    return subprocess.run(
        [sys.executable, "-m", "vlvm_jax.train", f"--config=configs/ftfv.py:{arg}", f"--workdir={tmp_path}/run"],
        cwd=ROOT, env=environment(tmp_path) | nowhere, capture_output=True, text=True, timeout=300,
    )  # fmt: skip


def test_help_helps(capsys):
    assert cli.run(lambda: None, "usage: something", ["train", "--help"]) == 0
    assert "usage: something" in capsys.readouterr().out


@pytest.fixture
def own_data(tmp_path, data_root):
    """A user's copy of the embedded data, to spoil."""
    source = recipe.data(data_root)
    target = tmp_path / "clips"
    shutil.copytree(source, target)
    return target


def spoilt(own_data, **changes) -> Config:
    """The last stage alone, over the user's own folder."""
    config = to_json(build(Config, recipe.get_config("tiny,scale=0.002")))
    config = json.loads(json.dumps(config).replace("{embedded}", str(own_data)))
    config["data"] |= {"embedded": None, "workers": 0}
    config["stages"] = [config["stages"][-1] | changes]
    config["stages"][0]["data"] = [{"path": f"{own_data}/train_clips.json"}]
    config |= {"evals": [], "tensorboard": False}
    return build(Config, config)


def run(config: Config, workdir):
    from etils import epath

    from vlvm_jax.evaluation import final
    from vlvm_jax.stop import StopSignal
    from vlvm_jax.training import stages

    return stages.run(config, epath.Path(workdir), StopSignal(), final.evaluate)


def test_a_missing_annotation_file(tmp_path, own_data):
    (own_data / "train_clips.json").unlink()
    with pytest.raises(InputError, match=r"train_clips\.json: no such annotation file"):
        run(spoilt(own_data), tmp_path / "run")


def test_json_that_is_not_llava_names_the_record(tmp_path, own_data):
    records = json.loads((own_data / "train_clips.json").read_text())
    records[5] = {"video": "a.mp4", "caption": "x"}
    (own_data / "train_clips.json").write_text(json.dumps(records))
    with pytest.raises(InputError, match=r"record 5: no 'conversations' list"):
        run(spoilt(own_data), tmp_path / "run")


def test_more_tokens_than_the_length_allows_with_the_arithmetic(tmp_path, own_data):
    with pytest.raises(InputError, match=r"8 frames takes 32 visual tokens \(4 a frame\).*length of 32"):
        run(spoilt(own_data, length=32), tmp_path / "run")
    assert not (tmp_path / "run").exists()  # a faulty config claims no folder
    with pytest.raises(InputError, match=r"32 visual \+ \d+ text tokens > length 40"):
        run(spoilt(own_data, length=40), tmp_path / "run2")


def test_a_batch_that_the_mesh_does_not_divide(tmp_path, own_data):
    # The tests run on eight CPU devices.
    with pytest.raises(InputError, match=r"12 rows / accumulate 1 = 12 rows .* data x fsdp = 8 does not divide"):
        run(spoilt(own_data, batch_size=12), tmp_path / "run")


def test_corrupt_and_empty_videos_are_skipped_and_counted_up_to_the_share(tmp_path, own_data):
    clips = sorted((own_data / "media" / "train_clips").glob("*.mp4"))
    clips[3].write_bytes(b"")
    clips[7].write_bytes(clips[7].read_bytes()[:200])
    few = spoilt(own_data, steps=8)
    few = few.model_copy(update={"data": few.data.model_copy(update={"max_bad_share": 0.1})})
    summary = run(few, tmp_path / "run")
    assert summary["skipped"] == {"corrupt": 1, "empty": 1}
    listed = [json.loads(line) for line in (tmp_path / "run" / "skipped.jsonl").read_text().splitlines()]
    assert {entry["detail"].split(" ")[0] for entry in listed} == {str(clips[3]), str(clips[7])}
    with pytest.raises(InputError, match=r"1 of 48 samples of stage 'instruct' cannot be used.*max_bad_share = 0\.01"):
        run(spoilt(own_data, steps=8), tmp_path / "run2")


def test_only_the_machinery_may_change_between_runs_of_a_workdir(tmp_path, capsys):
    from etils import epath

    from vlvm_jax.training import workdir as workdir_lib

    config = small()
    workdir_lib.claim_workdir(config, epath.Path(tmp_path))
    values = to_json(config)
    other = build(Config, values | {"mesh": {"data": 1, "fsdp": 8}, "data": values["data"] | {"workers": 3}})
    workdir_lib.check_workdir(other, epath.Path(tmp_path))
    said = capsys.readouterr().out
    assert "continuing with another config.mesh.data: -1 there, 1 here" in said
    assert "continuing with another config.data.workers: 0 there, 3 here" in said
    for changed in ({"seed": 5}, {"data": values["data"] | {"fps": 2.0, "workers": 3}}):
        with pytest.raises(InputError, match="holds another config's run"):
            workdir_lib.check_workdir(build(Config, values | changed), epath.Path(tmp_path))
    fewer = build(Config, values | {"stages": values["stages"][:2]})
    names = [stage["name"] for stage in values["stages"]]
    said = f"config.stages: {', '.join(names)} there, {', '.join(names[:2])} here)"
    with pytest.raises(InputError, match=re.escape(said)):
        workdir_lib.check_workdir(fewer, epath.Path(tmp_path))


def test_every_preset_builds():
    for preset in ftfv.PRESETS:
        for strategy in ftfv.STRATEGIES:
            config = build(Config, ftfv.get_config(f"{preset},video_strategy={strategy}"))
            sees_video = [
                stage.name
                for stage in config.stages
                if any("ideo" in f"{e.path} {e.media_root}" or "clips" in e.path for e in stage.data)
            ]
            assert sees_video == {
                "S1": ["instruct"], "S2": ["pretrain", "instruct"], "S3": ["video"],
            }[strategy]  # fmt: skip


@pytest.mark.parametrize("preset", red_villm.PRESETS)
def test_every_setting_of_red_villm_builds(preset):
    for learns in red_villm.TRAIN if preset != "tiny" else ("aligners", "decoder"):
        for more in ("language=zh", "language=both,init=random", "temporal=linear,frames=16", "video_fraction=0.1"):
            config = build(Config, red_villm.get_config(f"{preset},train={learns},{more}"))
            last = config.stages[-1]
            assert last.name == "video" and "adapter/**" in dict(last.trainable)
            alike = "internvl" not in preset  # whose connector joins patches, so that an affine map aligns time
            assert bool(last.copied) == (
                alike and more not in ("language=both,init=random", "temporal=linear,frames=16")
            )
            linear = not alike or "temporal=linear" in more
            assert config.model.adapter.options["temporal"] == ("linear" if linear else "same")
            assert any(path.startswith("decoder/") for path, _ in last.trainable) == (learns != "aligners")


@pytest.mark.parametrize(
    ("arg", "message"),
    [
        ("tiny,train=lora", "base and train=lora need one of the presets llava-1.5-7b"),
        ("llava-1.5-7b,language=fr", "language='fr'; there are en, zh, both"),
        ("tiny,video_fraction=0", "video_fraction=0.0 is not in (0, 1]"),
    ],
)
def test_what_red_villm_cannot_be(arg, message):
    with pytest.raises(InputError, match=re.escape(message)):
        red_villm.get_config(arg)


def test_config_errors_name_the_key():
    config = to_json(build(Config, ftfv.get_config()))
    config["stages"][1]["batch_sise"] = 3
    with pytest.raises(InputError, match=r"config\.stages\.1\.batch_sise: unknown key; did you mean 'batch_size'"):
        build(Config, config)
    config = to_json(build(Config, ftfv.get_config()))
    config["model"]["vision"]["patch_size"] = 65
    with pytest.raises(InputError, match=r"config\.model\.vision: image_size 64 is smaller than patch_size 65"):
        build(Config, config)


def test_a_length_past_the_decoders_positions():
    config = to_json(build(Config, ftfv.get_config()))
    config["stages"][0]["length"] = 5000
    with pytest.raises(InputError, match=r"align: length 5000 > the decoder's max_position_embeddings 4096"):
        build(Config, config)


def test_a_recipe_that_trains_nothing_says_what_to_do_with_it(tmp_path):
    config = build(Config, to_json(build(Config, ftfv.get_config())) | {"stages": [], "evals": []})
    with pytest.raises(InputError, match=r"config.stages: ftfv-tiny-S1 trains nothing; ask its model with .*evaluate"):
        run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_without_stages_the_model_is_evaluated_as_it_is(data_root, tmp_path, capsys):
    config = small()
    held_out = config.evals[0].model_copy(update={"limit": 4, "controls": ("blank_video",)})
    run(config.model_copy(update={"stages": (), "evals": (held_out,)}), tmp_path / "run")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["stages"] == [] and summary["eval"]["videos"]["questions"] == 4
    assert set(summary["eval"]["videos"]["controls"]) == {"blank_video"}
    assert (tmp_path / "run" / "summary.png").stat().st_size > 10_000
    shown = capsys.readouterr().out
    assert "held out: videos, 4 questions" in shown and "goodput" not in shown and "0 stages" not in shown


def test_settings_are_immutable_and_hash_by_content():
    assert hash(small().model) == hash(small().model)
    with pytest.raises(TypeError):
        small().model.adapter.options["reading"] = "mean"
    assert shapes.ShapesOptions(seed=1).hash != shapes.ShapesOptions().hash
