"""Qwen3: the decoder alone."""

from typing import Any

from vlvm_jax.config import DecoderConfig
from vlvm_jax.families._decoder import DecoderFamily


class Family(DecoderFamily):
    name = "qwen3"
    model_types = ("qwen3",)
    architecture = "Qwen3ForCausalLM"
    qk_norm = True

    def suits(self, decoder: DecoderConfig) -> bool:
        return decoder.attention_bias == decoder.attention_out_bias

    def own_fields(self, decoder: DecoderConfig) -> dict[str, Any]:
        return super().own_fields(decoder) | {"attention_bias": decoder.attention_bias}
