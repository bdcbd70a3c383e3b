"""Reads a recipe with the settings that the command line overrides."""

import re
from typing import Any

from vlvm_jax.config.run import Config
from vlvm_jax.config.settings import build
from vlvm_jax.errors import InputError

_LENGTH = re.compile(r"stages\[(?P<stage>-?\d+)\]\.(?P<key>steps|epochs)")
_OTHER = {"steps": "epochs", "epochs": "steps"}


def read(name: str = "config") -> Config:
    """The config of a flag that `config_flags.DEFINE_config_file` defined.

    A stage's `steps` on the command line replace the recipe's `epochs`, and vice versa.

    Raises:
      InputError: a setting is at fault, or both are on the command line.
    """
    from absl import flags
    from ml_collections import config_flags

    flag: Any = flags.FLAGS[name]
    values = flag.value.to_dict()
    stages = [dict(stage) for stage in values.get("stages", ())]
    given: dict[int, str] = {}
    for path, value in config_flags.get_override_values(flag).items():
        if not (match := _LENGTH.fullmatch(path)) or value is None:
            continue
        key, number = match["key"], int(match["stage"])
        if not -len(stages) <= number < len(stages):
            raise InputError(f"--{name}.{path}: the config has {len(stages)} stages, counted from 0")
        number %= len(stages)
        if given.setdefault(number, key) != key:
            where = f"--{name}.stages[{match['stage']}]"
            raise InputError(f"{where}.steps and {where}.epochs both say how long the stage is; give one of them")
        stages[number][_OTHER[key]] = None
    return build(Config, {**values, "stages": stages} if stages else values)
