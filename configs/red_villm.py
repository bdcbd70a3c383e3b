"""The recipe `red_villm` as a file. Its presets and keys are in `vlvm_jax/recipes/red_villm.py`."""

from vlvm_jax.recipes.red_villm import PRESETS, TRAIN, get_config

__all__ = ["PRESETS", "TRAIN", "get_config"]
