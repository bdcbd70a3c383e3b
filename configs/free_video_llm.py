"""The recipe `free_video_llm` as a file. Its presets and keys are in `vlvm_jax/recipes/free_video_llm.py`."""

from vlvm_jax.recipes.free_video_llm import BUDGETS, FRAMES, PRESETS, budget, get_config

__all__ = ["BUDGETS", "FRAMES", "PRESETS", "budget", "get_config"]
