"""The recipe `base` as a file. Its presets and keys are in `vlvm_jax/recipes/base.py`."""

from vlvm_jax.recipes.base import PRESETS, get_config

__all__ = ["PRESETS", "get_config"]
