"""Decoder of the Llama family: Llama, Vicuna, Mistral, Qwen2, Qwen3, SmolLM, with HF's module names.

The family's members differ by configuration only: grouped key/value heads, biases on q/k/v, norms of q and k, rotary
base, tied head.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from vlvm_jax.config import DecoderConfig, RopeScaling
from vlvm_jax.models.attention import SelfMask, attention, cached_attention, causal_mask, segment_mask
from vlvm_jax.models.layers import Linear
from vlvm_jax.models.stack import LayerStack
from vlvm_jax.models.vision import ACTIVATIONS
from vlvm_jax.parallel.rules import constrain


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KVCache:
    """Keys and values of what the decoder has read, for S slots.

    Attributes:
      key, value: [layers, B, G, S, F], as the products of attention read them.
      positions: [B, S] position of each slot.
      segments: [B, S] segment of each slot, 0 where nothing is stored.
      index: the next free slot, one scalar for the whole batch.
    """

    key: Float[Array, "layers B G S F"]
    value: Float[Array, "layers B G S F"]
    positions: Int[Array, "B S"]
    segments: Int[Array, "B S"]
    index: Int[Array, ""]


# Logical axes of its fields.
CACHE_AXES = {
    "key": (None, "batch", "heads", None, None),
    "value": (None, "batch", "heads", None, None),
    "positions": ("batch", None),
    "segments": ("batch", None),
    "index": (),
}


def init_cache(config: DecoderConfig, batch: int, slots: int, dtype=jnp.float32) -> KVCache:
    shape = (config.num_hidden_layers, batch, config.num_key_value_heads, slots, config.head_dim)
    return KVCache(
        key=constrain(jnp.zeros(shape, dtype), *CACHE_AXES["key"]),
        value=constrain(jnp.zeros(shape, dtype), *CACHE_AXES["value"]),
        positions=jnp.zeros((batch, slots), jnp.int32),
        segments=jnp.zeros((batch, slots), jnp.int32),
        index=jnp.zeros((), jnp.int32),
    )


def rotary_frequencies(head_dim: int, theta: float, scaling: RopeScaling | None = None) -> Float[Array, "half"]:
    frequencies = 1.0 / theta ** (jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    if scaling is None:
        return frequencies
    stretched = frequencies / scaling.factor
    if scaling.rope_type == "linear":
        return stretched
    # Llama 3.1: by how many turns a frequency makes within the length of pretraining.
    turns = scaling.original_max_position_embeddings * frequencies / (2 * jnp.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    share = jnp.clip((turns - low) / (high - low), 0, 1)
    return share * frequencies + (1 - share) * stretched


def rotary_embedding(
    positions: Int[Array, "B L"], head_dim: int, theta: float, scaling: RopeScaling | None = None
) -> tuple[Float[Array, "B L 1 F"], Float[Array, "B L 1 F"]]:
    """cos and sin in HF's half-split layout, fp32."""
    frequencies = rotary_frequencies(head_dim, theta, scaling)
    angles = positions[..., None].astype(jnp.float32) * frequencies
    angles = jnp.concatenate([angles, angles], axis=-1)[:, :, None]
    return jnp.cos(angles), jnp.sin(angles)


def apply_rotary(x: Float[Array, "B L H F"], cos: Array, sin: Array) -> Float[Array, "B L H F"]:
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([-second, first], axis=-1)
    return (x.astype(jnp.float32) * cos + rotated * sin).astype(x.dtype)


class DecoderAttention(nnx.Module):
    def __init__(self, config: DecoderConfig, *, dtype, rngs: nnx.Rngs):
        self.config = config
        width, head = config.hidden_size, config.head_dim
        bias = config.attention_bias

        def linear(inputs, outputs, use_bias):
            return Linear(inputs, outputs, use_bias=use_bias, dtype=dtype, kernel_init=_INIT, rngs=rngs)

        self.q_proj = linear(width, config.num_attention_heads * head, bias)
        self.k_proj = linear(width, config.num_key_value_heads * head, bias)
        self.v_proj = linear(width, config.num_key_value_heads * head, bias)
        self.o_proj = linear(config.num_attention_heads * head, width, config.attention_out_bias)

        def norm():
            return nnx.RMSNorm(head, epsilon=config.rms_norm_eps, dtype=dtype, rngs=rngs) if config.qk_norm else None

        self.q_norm, self.k_norm = norm(), norm()

    def __call__(self, x: Float[Array, "B L C"], cos, sin, mask: SelfMask | Bool[Array, "B 1 L S"], index, cache):
        """Attends within `x`, or within the cache after writing `x`'s keys and values at slot `index`.

        Which of the two, the mask says: a `SelfMask` is over `x` alone.

        Args:
          cache: None, or keys and values of all layers with the number of this one; they come back with `x` written.
        """
        batch, length, _ = x.shape
        head = self.config.head_dim
        q, k, v = (part(x).reshape(batch, length, -1, head) for part in (self.q_proj, self.k_proj, self.v_proj))
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = apply_rotary(q, cos, sin), apply_rotary(k, cos, sin)
        kept = None
        if cache is not None:
            held, number = cache
            place = (number, 0, 0, index, 0)
            new = (part.swapaxes(1, 2)[None] for part in (k, v))
            kept = tuple(
                jax.lax.dynamic_update_slice(old, part.astype(old.dtype), place)
                for old, part in zip(held, new, strict=True)
            )
        if kept is None or isinstance(mask, SelfMask):
            out = attention(q, k, v, mask)
        else:
            keys, values = (jax.lax.dynamic_index_in_dim(part, number, keepdims=False) for part in kept)
            out = cached_attention(q, keys, values, mask)
        return self.o_proj(out.reshape(batch, length, -1)), kept


class DecoderMLP(nnx.Module):
    def __init__(self, config: DecoderConfig, *, dtype, rngs: nnx.Rngs):
        def linear(inputs, outputs):
            return Linear(inputs, outputs, use_bias=False, dtype=dtype, kernel_init=_INIT, rngs=rngs)

        self.gate_proj = linear(config.hidden_size, config.intermediate_size)
        self.up_proj = linear(config.hidden_size, config.intermediate_size)
        self.down_proj = linear(config.intermediate_size, config.hidden_size)
        self.activation = config.hidden_act

    def __call__(self, x: Float[Array, "B L C"]) -> Float[Array, "B L C"]:
        return self.down_proj(ACTIVATIONS[self.activation](self.gate_proj(x)) * self.up_proj(x))


class DecoderLayer(nnx.Module):
    def __init__(self, config: DecoderConfig, *, dtype, rngs: nnx.Rngs):
        def norm():
            return nnx.RMSNorm(config.hidden_size, epsilon=config.rms_norm_eps, dtype=dtype, rngs=rngs)

        self.input_layernorm = norm()
        self.self_attn = DecoderAttention(config, dtype=dtype, rngs=rngs)
        self.post_attention_layernorm = norm()
        self.mlp = DecoderMLP(config, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "B L C"], cos, sin, mask, index, cache=None):
        out, cache = self.self_attn(self.input_layernorm(x), cos, sin, mask, index, cache)
        x = x + out
        x = x + self.mlp(self.post_attention_layernorm(x))
        return constrain(x, "batch", "length", None), cache


_INIT = nnx.initializers.lecun_normal()


class Decoder(nnx.Module):
    """Embeddings in, final hidden states out; `logits` applies the head.

    The head is apart so that the training loss can run it in chunks and never hold [B, L, vocab].
    """

    def __init__(self, config: DecoderConfig, *, dtype, remat: str = "none", splits=(), rngs: nnx.Rngs):
        self.config = config
        self.dtype = dtype
        width = config.hidden_size
        self.embed_tokens = nnx.Embed(
            config.vocab_size, width, dtype=dtype, embedding_init=nnx.initializers.normal(width**-0.5), rngs=rngs
        )
        self.layers = LayerStack(
            lambda rngs: DecoderLayer(config, dtype=dtype, rngs=rngs),
            config.num_hidden_layers,
            dtype=dtype,
            splits=splits,
            remat=remat,
            rngs=rngs,
        )
        self.norm = nnx.RMSNorm(width, epsilon=config.rms_norm_eps, dtype=dtype, rngs=rngs)
        self.lm_head = (
            None
            if config.tie_word_embeddings
            else Linear(width, config.vocab_size, use_bias=False, dtype=dtype, kernel_init=_INIT, rngs=rngs)
        )

    def __call__(
        self,
        embeddings: Float[Array, "B L C"],
        positions: Int[Array, "B L"],
        segment_ids: Int[Array, "B L"],
        cache: KVCache | None = None,
        *,
        prefill: bool = False,
    ) -> tuple[Float[Array, "B L C"], KVCache | None]:
        """Causal within each segment; segment 0 is padding.

        With a cache, the L new tokens are written at `cache.index` and attend to all that is stored.

        Args:
          prefill: the cache is empty, so that the new tokens need only attend to each other.
        """
        config = self.config
        cos, sin = rotary_embedding(positions, config.head_dim, config.rope_theta, config.rope_scaling)
        window = config.sliding_window
        if cache is None:
            mask = causal_mask(segment_ids, positions, self.dtype, window)
            x, _ = self.layers(embeddings, cos, sin, mask, None)
            return self.norm(x), None
        update = jax.lax.dynamic_update_slice_in_dim
        key_positions = update(cache.positions, positions, cache.index, axis=1)
        key_segments = update(cache.segments, segment_ids, cache.index, axis=1)
        if prefill:
            mask = causal_mask(segment_ids, positions, self.dtype, window)
        else:
            mask = segment_mask(segment_ids, key_segments, positions, key_positions, window)
        x, (key, value) = self.layers(embeddings, cos, sin, mask, cache.index, state=(cache.key, cache.value))
        cache = KVCache(key, value, key_positions, key_segments, cache.index + positions.shape[1])
        return self.norm(x), cache

    def embed(self, token_ids: Int[Array, "B L"]) -> Float[Array, "B L C"]:
        return self.embed_tokens(token_ids)

    def logits(self, hidden: Float[Array, "*batch C"]) -> Float[Array, "*batch vocab"]:
        """fp32 logits."""
        return jnp.dot(hidden, self.head(), preferred_element_type=jnp.float32)

    def head(self) -> Float[Array, "C vocab"]:
        """The head's weights in the computation's dtype."""
        head = self.embed_tokens.embedding[...].T if self.lm_head is None else self.lm_head.kernel[...]
        return head.astype(self.dtype)
