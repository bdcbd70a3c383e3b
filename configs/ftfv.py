"""The recipe `ftfv` as a file. Its presets and keys are in `vlvm_jax/recipes/ftfv.py`."""

from vlvm_jax.recipes.ftfv import PRESETS, STRATEGIES, get_config

__all__ = ["PRESETS", "STRATEGIES", "get_config"]
