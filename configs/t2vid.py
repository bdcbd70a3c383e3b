"""The recipe `t2vid` as a file. Its presets and keys are in `vlvm_jax/recipes/t2vid.py`."""

from vlvm_jax.recipes.t2vid import PRESETS, get_config, shares

__all__ = ["PRESETS", "get_config", "shares"]
