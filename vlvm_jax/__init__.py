"""Turn an image vision-language model into a video model, in JAX on TPUs."""

__version__ = "0.1.0"
