"""`config.json` of an export: what follows from our settings, over what the model's own checkpoint said."""

import copy
from typing import Any

from vlvm_jax.families._decoder import decoder_fields
from vlvm_jax.families._tower import tower_fields
from vlvm_jax.families.base import Exported, StockFamily

# Rope moved in transformers 5; a window that no row outgrows is None here.
_SPELLED_OTHERWISE = ("rope_theta", "rope_scaling", "sliding_window", "max_position_embeddings")


def make(family: StockFamily, exported: Exported, base: dict[str, Any] | None) -> dict[str, Any]:
    """The config of a transformers class.

    Args:
      base: `config.json` of the checkpoint that the model came from: all that it says and that still holds is kept.
    """
    kept = {} if base is None else copy.deepcopy(family.kept(base))
    config = _overlay(kept, family.fields(exported, base))
    config["architectures"] = [family.architecture]
    config["dtype"] = exported.dtype
    config.pop("torch_dtype", None)
    return config


def parts(exported: Exported, base: dict[str, Any] | None) -> dict[str, Any]:
    """The configs of the tower and the decoder for our own class."""
    assert exported.vision is not None and exported.decoder is not None
    return {
        "vision_config": tower_fields(exported.vision, exported.has_head),
        "text_config": decoder_fields(exported.decoder, base),
    }


def _overlay(kept: dict[str, Any], fresh: dict[str, Any]) -> dict[str, Any]:
    """`fresh` over `kept`, but for keys that the class spells, or bounds, in its own way."""
    result = dict(kept)
    for key, value in fresh.items():
        if key in _SPELLED_OTHERWISE and kept:
            continue
        if isinstance(value, dict) and isinstance(kept.get(key), dict):
            result[key] = _overlay(kept[key], value)
        else:
            result[key] = value
    return result
