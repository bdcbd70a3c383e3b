"""Qwen2 and Qwen2.5: the decoder alone."""

from typing import Any

from vlvm_jax.config import DecoderConfig
from vlvm_jax.families._decoder import DecoderFamily


class Family(DecoderFamily):
    name = "qwen2"
    model_types = ("qwen2",)
    architecture = "Qwen2ForCausalLM"

    def suits(self, decoder: DecoderConfig) -> bool:
        return decoder.attention_bias and not decoder.attention_out_bias

    def biases(self, config: Any) -> tuple[bool, bool]:
        return True, False

    def own_fields(self, decoder: DecoderConfig) -> dict[str, Any]:
        """The config has no `head_dim`, but the code heeds one."""
        usual = decoder.head_dim * decoder.num_attention_heads == decoder.hidden_size
        return {} if usual else super().own_fields(decoder)
