"""Which configs continue the run in a folder: those that differ in nothing but settings its `config.json` lacks."""

import json
from pathlib import Path
from typing import Any

import pytest
from etils import epath

from vlvm_jax.config import Config, build
from vlvm_jax.data.sources.text_pages import TextPages
from vlvm_jax.errors import InputError
from vlvm_jax.training import workdir as workdir_lib

# As a run of version 0.1.0 wrote it. It stays as it is: new settings have to leave such runs their config.
KEPT = Path(__file__).parents[1] / "data" / "workdirs" / "t2vid_tiny.json"


def kept() -> dict[str, Any]:
    return json.loads(KEPT.read_text())


def check(folder: Path, config: dict[str, Any], stored: dict[str, Any]) -> None:
    (folder / "config.json").write_text(json.dumps(stored))
    workdir_lib.check_workdir(build(Config, config), epath.Path(folder))


def test_a_run_of_version_0_1_0_continues(tmp_path):
    check(tmp_path, kept(), kept())


def test_settings_that_a_run_lacks_count_as_their_defaults_at_every_depth(tmp_path):
    config = build(Config, kept())
    stored = config.model_dump(mode="json", exclude_defaults=True)
    pages = stored["stages"][-1]["data"][-1]["pages"]
    assert pages.pop("shown_as") == TextPages().shown_as
    for lacking, key in (
        (stored, "mesh"), (stored["data"], "fps"), (stored["stages"][0], "beta1"), (stored["evals"][0], "pack"),
        (stored["stages"][0]["data"][0], "repeat"), (stored["model"]["vision"], "layer_norm_eps"),
        (stored["model"]["adapter"], "options"), (pages, "overflow"),
    ):  # fmt: skip
        assert key not in lacking
    assert "seed" not in stored["data"]["embedded"]
    check(tmp_path, kept(), stored)
    check(tmp_path, stored, kept())  # whichever of the two has the newer settings


def changed(path: tuple[str | int, ...], value: Any = None, *, drop: bool = False) -> dict[str, Any]:
    """The kept config with one key set or dropped."""
    config = kept()
    place: Any = config
    for part in path[:-1]:
        place = place[part]
    if drop:
        place.pop(path[-1], None)
    else:
        place[path[-1]] = value
    return config


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("seed",), 5, "config.seed: 0 there, 5 here"),
        (("data", "fps"), 2.0, "config.data.fps: 1.0 there, 2.0 here"),
        (("stages", 1, "beta1"), 0.5, "config.stages.1.beta1: 0.9 there, 0.5 here"),
        (("model", "adapter", "options", "pool"), "max", "config.model.adapter.options.pool: 'none' there"),
        (("data", "embedded", "seed"), 5, "config.data.embedded.seed: 0 there, 5 here"),
        (("stages", -1, "data", -1, "pages", "overflow"), "shrink", "pages.overflow: 'clip' there, 'shrink' here"),
    ],
)
def test_a_setting_that_a_run_lacks_and_that_is_no_default_is_another_config(tmp_path, path, value, said):
    with pytest.raises(InputError) as caught:
        check(tmp_path, changed(path, value), changed(path, drop=True))
    assert "holds another config's run" in str(caught.value) and said in str(caught.value)


@pytest.mark.parametrize(
    "path",
    [
        ("later",),
        ("data", "later"),
        ("stages", 1, "later"),
        ("stages", 0, "data", 0, "later"),
        ("evals", 0, "later"),
        ("model", "decoder", "later"),
        ("model", "adapter", "options", "later"),
        ("data", "embedded", "later"),
        ("stages", 1, "data", 2, "pages", "later"),
    ],
    ids=lambda path: ".".join(map(str, path)),
)
def test_a_setting_that_is_unknown_here_is_refused_by_name(tmp_path, path):
    with pytest.raises(InputError) as caught:
        check(tmp_path, kept(), changed(path, 1))
    name = ".".join(map(str, ("config", *path)))
    assert f"--workdir={tmp_path}: " in str(caught.value) and f"{name}: unknown key" in str(caught.value)


def test_what_every_run_has_is_missed_by_name(tmp_path):
    with pytest.raises(InputError, match=r"config\.model\.vision\.hidden_size: this key is required and missing"):
        check(tmp_path, kept(), changed(("model", "vision", "hidden_size"), drop=True))
    with pytest.raises(InputError, match="config: Input should be a valid dictionary"):
        check(tmp_path, kept(), [])  # pyright: ignore[reportArgumentType]
