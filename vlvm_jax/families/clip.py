"""CLIP: its vision tower, bare or in a whole CLIP, and the whole one that guides frames by a question."""

from pathlib import Path

from vlvm_jax import families
from vlvm_jax.config import ClipConfig, TextConfig
from vlvm_jax.data import files
from vlvm_jax.data.files import read_json
from vlvm_jax.errors import InputError
from vlvm_jax.families._tower import TowerFamily, tower
from vlvm_jax.families.base import pixel_statistics, settings_of


class Family(TowerFamily):
    name = "clip"
    model_types = ("clip", "clip_vision_model")
    architecture = "CLIPVisionModel"


def read_clip(directory: Path, where: str) -> ClipConfig:
    """The settings of a whole CLIP, its image tower's among them.

    Args:
      where: the key that named the directory, for messages.

    Raises:
      InputError: it is not a whole CLIP, or one that cannot be run exactly.
    """
    path = directory / "config.json"
    raw = read_json(path)
    model_type = raw.get("model_type")
    if model_type != "clip":
        raise InputError(
            f"{where}: {directory} is not a whole CLIP (model_type 'clip', text side and projections too); its "
            f"config.json says {model_type!r}"
        )
    families.check_readable(directory, raw)
    config = files.transformers_config(directory)
    text = config.text_config
    settings = settings_of(
        TextConfig, f"{path}: text_config", **{name: getattr(text, name) for name in TextConfig.model_fields}
    )
    vision = tower(config.vision_config, str(path), statistics=pixel_statistics(directory))
    return settings_of(ClipConfig, str(path), text=settings, vision=vision, projection_dim=config.projection_dim)
