"""`stages=` of recipes, and how long a stage is on the command line."""

import dataclasses
import sys

import pytest
from absl import flags
from ml_collections import config_flags
from support.recipes import ROOT

from configs import ftfv, red_villm, t2vid
from vlvm_jax.config import Config, build, command_line
from vlvm_jax.errors import InputError
from vlvm_jax.recipes import _bases as bases


def of(recipe, arg: str) -> Config:
    return build(Config, recipe.get_config(arg))


def names(config: Config) -> list[str]:
    return [stage.name for stage in config.stages]


def test_one_stage_asks_for_its_own_data_alone():
    whole, trial = of(ftfv, "llava-1.5-7b"), of(ftfv, "llava-1.5-7b,stages=instruct")
    assert names(whole) == ["align", "pretrain", "instruct"] and names(trial) == ["instruct"]
    assert trial.stages[0] == whole.stages[2]
    assert not any("Pretrain" in entry.path for stage in trial.stages for entry in stage.data)
    assert trial.name == "ftfv-llava-1.5-7b-S1-instruct"  # whose folder is not that of the whole recipe
    assert trial.notes == ("stages left out: align, pretrain; instruct starts from llava-hf/llava-1.5-7b-hf",)


@pytest.mark.parametrize(
    ("recipe", "arg", "kept", "said"),
    [
        (ftfv, "vicuna-7b,stages=instruct", ["instruct"], "and a connector with random parameters"),
        (ftfv, "vicuna-7b,stages=instruct", ["instruct"], "encoder openai/clip-vit-large-patch14, decoder lmsys/"),
        (ftfv, "tiny,stages=instruct+align", ["align", "instruct"], "instruct starts from the result of align"),
        (ftfv, "tiny,stages=pretrain", ["pretrain"], "pretrain starts from embedded"),
        (ftfv, "llava-1.5-7b,base=my/own,stages=align+instruct", ["align", "instruct"], "the result of align"),
        (ftfv, "llava-1.5-7b,base=my/own,video_strategy=S3,stages=video", ["video"], "starts from my/own"),
        (red_villm, "qwen2-7b,stages=video", ["video"], "left out: align, images"),
    ],
)
def test_every_recipe_says_what_a_stage_starts_from(recipe, arg, kept, said, monkeypatch):
    monkeypatch.setattr(bases, "base", base_without_files)
    config = of(recipe, arg)
    assert names(config) == kept and said in config.notes[-1]


def base_without_files(preset, path):
    preset_base = bases.BASES[preset]
    return dataclasses.replace(preset_base, init_from=path) if path else preset_base


@pytest.mark.parametrize("recipe", [ftfv, red_villm, t2vid])
def test_all_stages_are_the_whole_recipe(recipe):
    whole = of(recipe, "tiny")
    assert of(recipe, f"tiny,stages={'+'.join(names(whole))}") == whole


def test_an_unknown_stage_is_refused():
    with pytest.raises(InputError, match="stages=teach: no stage 'teach'; there are align, pretrain, instruct"):
        ftfv.get_config("tiny,stages=teach")


# --- steps and epochs ------------------------------------------------------------------------------------------------


@pytest.fixture
def given(monkeypatch):
    """The config that a command reads from these arguments."""

    def read(*arguments: str) -> Config:
        monkeypatch.chdir(ROOT)
        monkeypatch.setattr(sys, "argv", ["train", *arguments])  # where config_flags looks for overrides
        values = flags.FlagValues()
        config_flags.DEFINE_config_file("config", None, "", lock_config=True, flag_values=values)
        values(["train", *arguments])
        monkeypatch.setattr(flags, "FLAGS", values)
        return command_line.read()

    return read


LLAVA = "--config=configs/ftfv.py:llava-1.5-7b"


def test_steps_take_the_place_of_epochs(given):
    stages = given(LLAVA, "--config.stages[2].steps=600").stages
    assert (stages[2].steps, stages[2].epochs) == (600, None)
    assert (stages[1].steps, stages[1].epochs) == (None, 1.0)
    assert given(LLAVA, "--config.stages[-1].steps=7").stages[2].steps == 7


def test_epochs_take_the_place_of_steps(given):
    stage = given("--config=configs/ftfv.py:tiny", "--config.stages[0].epochs=2", "--config.stages[0].batch_size=8")
    assert (stage.stages[0].steps, stage.stages[0].epochs, stage.stages[0].batch_size) == (None, 2.0, 8)


def test_the_recipes_own_may_be_changed(given):
    assert given(LLAVA, "--config.stages[0].epochs=0.5").stages[0].epochs == 0.5


def test_both_are_refused_by_name(given):
    with pytest.raises(InputError, match=r"config.stages\[1\].steps and --config.stages\[1\].epochs both"):
        given(LLAVA, "--config.stages[1].steps=5", "--config.stages[1].epochs=2")


def test_what_is_unset_can_be_set(given):
    config = given("--config=configs/ftfv.py:tiny", "--config.stages[2].save_every=7", "--config.evals[0].limit=5")
    assert config.stages[2].save_every == 7 and config.evals[0].limit == 5
