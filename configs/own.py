"""The recipe `own` as a file. Its presets and keys are in `vlvm_jax/recipes/own.py`."""

from vlvm_jax.recipes.own import get_config

__all__ = ["get_config"]
