"""The recipe for a user's own clips: what its settings must say."""

import sys
from typing import Any

import pytest
from absl import flags
from ml_collections import config_flags
from support.recipes import ROOT

from configs import own
from vlvm_jax.config import Config, build
from vlvm_jax.data.sources.mixture import read_mixture
from vlvm_jax.errors import InputError


@pytest.mark.parametrize(
    "setting, said",
    [
        (None, "--config: name a preset, as in --config=FILE.py:smolvlm2-256m"),
        ("smolvlm2-256m", "data=... is required"),
        ("smolvlm2-256m,data=a,b.json", "'b.json' is not key=value; commas separate settings"),
        ("llava-1.5-7b,length=9999,data=x", "give length=4096 where the recipe takes it"),
    ],
)
def test_what_settings_lack_is_said(setting, said):
    with pytest.raises(InputError) as caught:
        read_mixture(build(Config, own.get_config(setting).to_dict()).stages[0].data, 0)
    assert said in str(caught.value)


def test_a_path_with_a_comma_is_given_by_a_flag_of_its_own(tmp_path, monkeypatch):
    values: Any = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, "A recipe.", flag_values=values)
    path = f"--config.stages[0].data[0].path={tmp_path}/a,b.json"
    arguments = ["train", f"--config={ROOT}/configs/own.py:smolvlm2-256m", path]
    monkeypatch.setattr(sys, "argv", arguments)  # where ml_collections looks for what is overridden
    values(arguments)
    with pytest.raises(InputError, match=r"a,b\.json: no such annotation file"):
        read_mixture(build(Config, values["config"].value.to_dict()).stages[0].data, 0)
