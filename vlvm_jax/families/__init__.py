"""Base families: what checkpoints of each architecture look like. One file a family, found by its place; no jax."""

import functools
import importlib
import pkgutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from vlvm_jax.data import files
from vlvm_jax.data.files import read_json
from vlvm_jax.data.images.image_rules import Settings, SquareRule, of_frames, read_files
from vlvm_jax.errors import InputError
from vlvm_jax.families import _unreadable
from vlvm_jax.families.base import Access, Family, HFModel, Preparation, StockFamily


@functools.cache
def every() -> Mapping[str, Family]:
    """All families by name."""
    modules = (m.name for m in pkgutil.iter_modules(__path__) if m.name != "base" and not m.name.startswith("_"))
    families = [importlib.import_module(f"{__name__}.{name}").Family() for name in sorted(modules)]
    return {family.name: family for family in families}


def get(name: str) -> Family:
    """The family of that name."""
    return every()[name]


def stock(name: str) -> StockFamily:
    """The family of that name, which has a transformers class."""
    family = get(name)
    assert isinstance(family, StockFamily), name
    return family


def of_config(raw: Mapping[str, Any] | None) -> Family | None:
    """The family that a `config.json` belongs to; None if there is no config or no family claims it."""
    if raw is None:
        return None
    claiming = [family for family in every().values() if family.claims(raw)]
    return max(claiming, key=lambda family: family.precedence, default=None)


def class_name(raw: dict[str, Any] | None) -> str | None:
    """The name of the family whose class a checkpoint is or corresponds to, from its `config.json` alone."""
    family = of_config(raw)
    if raw is None or family is None:
        return None if raw is None else str(raw.get("model_type", ""))
    return family.class_of(raw)


def preparation(directory: Path) -> Preparation | None:
    """How the model of a directory is asked, if its `config.json` says so itself.

    Raises:
      InputError: what it says cannot be used.
    """
    raw = read_json(directory / "config.json")
    family = of_config(raw)
    return None if family is None else family.preparation(directory, raw)


def check_readable(directory: Path, raw: Mapping[str, Any]) -> None:
    """Raises `InputError` for weights in a form that is not read, and for settings that contradict.

    Args:
      raw: what `config.json` holds.
    """
    _unreadable.check_config(raw, f"{directory / 'config.json'}")
    _unreadable.check_files(directory)


def read(directory: Path, access: Access) -> HFModel:
    """Reads `config.json` and, for the pixel statistics, the image processor's file.

    transformers fills in the values that a `config.json` leaves to its class; it is used without torch.

    Raises:
      InputError: no config, a family that is not known, or a setting that this library cannot run exactly.
    """
    if not (directory / "config.json").is_file():
        raise InputError(f"{directory}: no config.json here; expected a directory in the Hugging Face format")
    raw = files.without_code(read_json(directory / "config.json"))
    check_readable(directory, raw)
    family = of_config(raw)
    if family is not None:
        return family.read(directory, raw, access)
    files.transformers_config(directory)  # says what is wrong with a config that transformers cannot read either
    raise InputError(
        f"{directory / 'config.json'}: model_type {raw.get('model_type')!r} is not one this library knows; it knows "
        f"{', '.join(name for name, family in every().items() if family.model_types)}"
    )


def read_settings(directory: str) -> Settings:
    """Reads `config.json` and the processors' files of a local Hugging Face directory.

    Raises:
      InputError: there is no such directory, or what has to be in it is not or cannot be used.
    """
    folder = Path(directory).expanduser()
    if not (folder / "config.json").is_file():
        raise InputError(
            f"config.data.processor: {directory} holds no config.json; give the directory of a checkpoint in "
            "Hugging Face format"
        )
    raw = read_json(folder / "config.json")
    family = of_config(raw)
    return read_files(folder) if family is None else family.settings(folder, raw)


def of_settings(settings: Settings) -> StockFamily:
    """The family of a directory's transformers class.

    Raises:
      InputError: the family is not known.
    """
    model_type = settings.config.model_type
    family = next((family for family in every().values() if model_type in family.model_types), None)
    if not isinstance(family, StockFamily) or not family.sees:
        known = sorted(name for family in every().values() if family.sees for name in family.model_types)
        raise InputError(
            f"{settings.directory}/config.json: no image preprocessing for model_type {model_type!r}; there is for "
            f"{', '.join(known)}"
        )
    return family


def image_rule(settings: Settings) -> SquareRule:
    """The rule of a checkpoint's family, tried out once.

    Raises:
      InputError: the family is not known, or the settings do not end in uint8 squares of the tower's size.
    """
    rule = of_frames(of_settings(settings).image_rule(settings), settings)
    probe = [Image.new("RGB", (40, 30))]
    for way in (rule.frames, rule.whole, rule.tiles):
        way(probe)
    return rule
