"""Mistral: the decoder alone."""

from typing import Any

from vlvm_jax.config import DecoderConfig
from vlvm_jax.families._decoder import DecoderFamily


class Family(DecoderFamily):
    name = "mistral"
    model_types = ("mistral",)
    architecture = "MistralForCausalLM"
    slides = True

    def suits(self, decoder: DecoderConfig) -> bool:
        return decoder.sliding_window is not None

    def window(self, config: Any) -> int | None:
        """None where no row is longer."""
        window = config.sliding_window
        return window if window and window < config.max_position_embeddings else None

    def positions(self, config: Any, where: str) -> int:
        del where
        return config.max_position_embeddings

    def own_fields(self, decoder: DecoderConfig) -> dict[str, Any]:
        return super().own_fields(decoder) | {"sliding_window": decoder.sliding_window}
