"""CLIP's text tower. Module names follow HF's `CLIPTextModel`."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from vlvm_jax.config import TextConfig
from vlvm_jax.models.attention import SelfMask, attention, causal_mask
from vlvm_jax.models.layers import Linear
from vlvm_jax.models.stack import LayerStack
from vlvm_jax.models.vision import VisionMLP
from vlvm_jax.parallel.rules import constrain


class TextAttention(nnx.Module):
    def __init__(self, config: TextConfig, *, dtype, rngs: nnx.Rngs):
        self.num_heads = config.num_attention_heads
        width = config.hidden_size

        def linear():
            return Linear(width, width, dtype=dtype, rngs=rngs)

        self.q_proj, self.k_proj, self.v_proj, self.out_proj = linear(), linear(), linear(), linear()

    def __call__(self, x: Float[Array, "B P E"], mask: SelfMask) -> Float[Array, "B P E"]:
        batch, length, width = x.shape
        q, k, v = (
            proj(x).reshape(batch, length, self.num_heads, width // self.num_heads)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        return self.out_proj(attention(q, k, v, mask).reshape(batch, length, width))


class TextLayer(nnx.Module):
    def __init__(self, config: TextConfig, *, dtype, rngs: nnx.Rngs):
        self.layer_norm1 = nnx.LayerNorm(config.hidden_size, epsilon=config.layer_norm_eps, dtype=dtype, rngs=rngs)
        self.self_attn = TextAttention(config, dtype=dtype, rngs=rngs)
        self.layer_norm2 = nnx.LayerNorm(config.hidden_size, epsilon=config.layer_norm_eps, dtype=dtype, rngs=rngs)
        self.mlp = VisionMLP(config, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "B P E"], mask: SelfMask, layer_input=None):
        del layer_input
        x = x + self.self_attn(self.layer_norm1(x), mask)
        return constrain(x + self.mlp(self.layer_norm2(x)), "batch", None, None), None


class TextTower(nnx.Module):
    """Token ids to one feature a text: that of its end token after the last layer norm.

    What stands behind the end token has no effect, as attention is causal; padding needs no mask.
    """

    def __init__(self, config: TextConfig, *, dtype, remat: str = "none", rngs: nnx.Rngs):
        self.config = config
        self.dtype = dtype
        width, init = config.hidden_size, nnx.initializers.normal
        self.token_embedding = nnx.Embed(config.vocab_size, width, dtype=dtype, embedding_init=init(0.02), rngs=rngs)
        self.position_embedding = nnx.Param(init(0.01)(rngs.params(), (config.max_position_embeddings, width)))
        self.layers = LayerStack(
            lambda rngs: TextLayer(config, dtype=dtype, rngs=rngs),
            config.num_hidden_layers,
            dtype=dtype,
            remat=remat,
            rngs=rngs,
        )
        self.final_layer_norm = nnx.LayerNorm(width, epsilon=config.layer_norm_eps, dtype=dtype, rngs=rngs)

    def __call__(self, token_ids: Int[Array, "B P"]) -> Float[Array, "B E"]:
        """The feature that stands for each text.

        Args:
        token_ids: P at most `max_position_embeddings`; each row holds an end token.
        """
        length = token_ids.shape[1]
        if length > self.config.max_position_embeddings:
            raise ValueError(f"{length} tokens for {self.config.max_position_embeddings} positions")
        x = self.token_embedding(token_ids) + self.position_embedding[...][:length].astype(self.dtype)
        positions = jnp.broadcast_to(jnp.arange(length), token_ids.shape)
        x, _ = self.layers(x, causal_mask(jnp.ones_like(token_ids), positions, self.dtype))
        end = end_positions(token_ids, self.config.eos_token_id)
        return self.final_layer_norm(jnp.take_along_axis(x, end[:, None, None], axis=1)[:, 0])


def end_positions(token_ids: Int[Array, "B P"], eos_token_id: int) -> Int[Array, "B"]:
    """Where each text ends, as transformers' CLIP finds it (see `TextConfig`)."""
    if eos_token_id == 2:
        return jnp.argmax(token_ids, axis=1)
    return jnp.argmax(token_ids == eos_token_id, axis=1)
