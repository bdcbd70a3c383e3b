"""What recipes share: the argument after the colon, the embedded data, the tiny model."""

from collections.abc import Collection
from typing import Any

from ml_collections import ConfigDict, config_dict

from vlvm_jax.config import Config, build
from vlvm_jax.errors import InputError


def parse_arg(arg: str | None, presets: Collection[str], **options) -> tuple[str, Any]:
    """`preset,key=value,...` -> (preset, options). No preset means `tiny`; values take the default's type.

    Raises:
      InputError: unknown preset or key, or a value of the wrong type.
    """
    parts = [part for part in (arg or "").split(",") if part]
    preset = parts.pop(0) if parts and "=" not in parts[0] else "tiny"
    if preset not in presets:
        raise InputError(f"--config: no preset {preset!r}; there are {', '.join(presets)}")
    values = dict(options)
    for part in parts:
        key, separator, text = part.partition("=")
        if not separator or key not in options:
            raise InputError(f"--config: unknown key {key!r} in {part!r}; there are {', '.join(options)}")
        kind = type(options[key])
        try:
            values[key] = text.lower() in ("1", "true", "yes") if kind is bool else kind(text)
        except ValueError:
            raise InputError(f"--config: {key}={text!r} is not a {kind.__name__}") from None
    return preset, ConfigDict(values)


def complete(config: dict) -> ConfigDict:
    """The config with every setting's default written out, so that each can be overridden on the command line."""
    values = build(Config, config).model_dump(mode="json", exclude_none=True)
    for stage in values["stages"]:
        stage["trainable"] = dict(stage["trainable"])
    for part in ("stages", "evals"):
        values[part] = [ConfigDict(entry) for entry in values[part]]
    # A number or "auto", where a ConfigDict would only take what it began with.
    values["data"]["workers"] = config_dict.FieldReference(values["data"]["workers"], field_type=object)
    full = ConfigDict(values)
    full.wandb_project = config_dict.placeholder(str)
    model: Any = full.model
    if "init_from" not in model:
        model.init_from = config_dict.placeholder(str)
    return full


def entry(path: str, **kwargs) -> dict:
    return {"path": path, **kwargs}


def tiny_model(adapter: dict) -> dict:
    """600 thousand parameters for 48 x 48 frames of the embedded data, one patch per grid cell."""
    from vlvm_jax.data.embedded.shapes import vocab_size

    return {
        "vision": {
            "kind": "siglip", "hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 4,
            "num_attention_heads": 2, "image_size": 48, "patch_size": 16, "feature_layer": -1,
            "hidden_act": "gelu_pytorch_tanh", "position_init": 1.0,
        },
        "adapter": adapter,
        "decoder": {
            "vocab_size": vocab_size(), "hidden_size": 96, "intermediate_size": 240, "num_hidden_layers": 3,
            "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 48,
        },
        "dtype": "float32", "vision_remat": "full", "decoder_remat": "full",
    }  # fmt: skip
