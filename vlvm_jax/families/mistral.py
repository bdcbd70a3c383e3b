"""Mistral: the decoder alone."""

from typing import Any

from vlvm_jax.config import DecoderConfig
from vlvm_jax.families._decoder import DecoderFamily


class Family(DecoderFamily):
    name = "mistral"
    model_types = ("mistral",)
    architecture = "MistralForCausalLM"

    def positions(self, config: Any, where: str) -> int:
        """Within the window, sliding attention is full attention; beyond it, this library would not be exact."""
        if config.sliding_window:
            return min(config.max_position_embeddings, config.sliding_window)
        return super().positions(config, where)

    def own_fields(self, decoder: DecoderConfig) -> dict[str, Any]:
        return super().own_fields(decoder) | {"sliding_window": None}
