"""A packaged recipe is named from any folder, and is the same as its file under `configs/`."""

import importlib
from pathlib import Path

import pytest
from support.recipes import ROOT

from vlvm_jax import cli

RECIPES = sorted(cli.recipes())


@pytest.mark.parametrize("name", RECIPES)
def test_a_name_is_the_recipe_of_its_file(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    parse = cli._RecipeParser("config").parse
    given = {"own": ":smolvlm2-256m,data=x", "t2vid": "", "free_video_llm": ":tiny,seed=1"}
    arg = given.get(name, ":tiny,scale=0.1")
    by_name, by_file = parse(f"{name}{arg}"), parse(f"{ROOT}/configs/{name}.py{arg}")
    assert by_name == by_file and by_name.is_locked


def test_every_recipe_has_a_file_and_none_is_a_helper():
    assert sorted(file.stem for file in (ROOT / "configs").glob("[!_]*.py")) == RECIPES
    for name, file in cli.recipes().items():
        assert Path(file).is_file() and not name.startswith("_")
        recipe = importlib.import_module(f"vlvm_jax.recipes.{name}")
        assert importlib.import_module(f"configs.{name}").get_config is recipe.get_config


def test_a_name_is_no_file(tmp_path, monkeypatch):
    """What lies beside by chance does not take a recipe's place; `./ftfv` would."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ftfv").write_text("def get_config(arg=None):\n    return {'mine': True}\n")
    parse = cli._RecipeParser("config").parse
    assert parse("ftfv").name == "ftfv-tiny-S1" and parse("./ftfv") == {"mine": True}
